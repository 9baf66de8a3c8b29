"""FlowSep, stage by stage, from PyTorch to a bundle of ONNX graphs that was checked against it."""
