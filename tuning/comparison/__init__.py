"""Comparison of runs: settings, pairs, verdicts, and how they are shown."""
