"""Clusters that runs are sent to: one description of a cluster, and the files of each launcher made from it."""
