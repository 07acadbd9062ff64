"""The cheapest choice of what stays above 8 bits: measured, searched for, and explained."""
