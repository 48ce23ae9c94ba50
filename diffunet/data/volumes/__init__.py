"""Volumes as files: reading, writing on the same grid, resampling, and layouts of published sets."""
