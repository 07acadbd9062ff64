"""What was computed before, kept by content: of whole compiles, and of their stages."""
