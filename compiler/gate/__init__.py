"""The parity gate: a policy file, what it demands, and what was found."""
