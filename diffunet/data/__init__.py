"""Data sets: files to batches of named columns.

Decoded once where they fit into memory, augmented as a batch.
"""
