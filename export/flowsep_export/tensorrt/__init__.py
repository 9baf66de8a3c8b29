"""TensorRT engines: built, kept and verified on the GPU that runs them."""
