"""Code that only the demo needs."""
