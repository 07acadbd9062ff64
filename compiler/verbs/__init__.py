"""The verbs of the command line: options, one call, and what is printed. Only click is imported."""
