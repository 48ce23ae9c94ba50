"""Datasets: image files to batches of named columns, decoded once if they fit in memory."""
