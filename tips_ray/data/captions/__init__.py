"""Captions as a data format."""
