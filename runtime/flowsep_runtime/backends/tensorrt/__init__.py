"""TensorRT engines through cuda-python."""
