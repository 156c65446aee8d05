"""Synthetic captions: the captioner, and the store that keeps each chunk's captions exactly once. No Ray here."""
