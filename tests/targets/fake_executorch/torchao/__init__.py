"""A stand-in for torchao."""
