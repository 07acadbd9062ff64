"""Moving factors between the channels of neighbouring operators without changing the function."""
