"""Training of FlowSep's three parts: the autoencoder, the vocoder and the flow."""
