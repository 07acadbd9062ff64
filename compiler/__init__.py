"""npuc."""
