"""Drives a run."""
