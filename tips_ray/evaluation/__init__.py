"""Frozen evaluation: metrics, features, and one file per task."""
