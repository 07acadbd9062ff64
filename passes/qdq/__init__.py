"""Where QuantizeLinear and DequantizeLinear go, and the codes between them."""
