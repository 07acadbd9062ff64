"""A program run in torch with a device's numerics, as a function of a module's parameters."""
