"""Comparison of runs: settings, pairs, verdicts, and how they are shown."""

MEASURES = ("step", "images", "gpu-hours")
"""What runs can be compared at equal amounts of."""
