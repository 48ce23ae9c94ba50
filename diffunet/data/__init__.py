"""Datasets: image files to batches of named columns.

Decoded once if they fit in memory, augmented as a batch.
"""
