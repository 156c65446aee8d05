"""Studies with several runs."""
