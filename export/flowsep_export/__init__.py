"""FlowSep, stage by stage, from PyTorch to a verified bundle of ONNX graphs."""
