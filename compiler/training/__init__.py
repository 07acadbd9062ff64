"""How well a model would be served by other chips, told while it is still trained."""
