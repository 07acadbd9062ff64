"""What devices compute, bit by bit: integers, tables and short floats, in numpy and as ONNX."""
