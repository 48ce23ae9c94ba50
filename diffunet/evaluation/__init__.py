"""From images to numbers.

Features, distances with their errors and references, and the monitor of a training.
"""
