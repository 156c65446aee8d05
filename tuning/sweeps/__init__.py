"""Sweeps: a record, a queue that reads it, and what executes the queue's jobs."""
