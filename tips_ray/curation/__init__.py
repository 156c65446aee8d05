"""Chooses a training set out of web pairs: language, near-duplicates, exact search. Pure functions, without Ray."""
