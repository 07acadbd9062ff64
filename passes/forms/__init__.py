"""Ways to write an operator in others, for `npuc.passes.decompose` and its kin."""
