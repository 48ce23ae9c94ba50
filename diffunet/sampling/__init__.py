"""From noise to images.

The loop, guidance, and batches of images with one seed each.
"""
