"""A run folder, its configuration, and objects made from it.

Sampling and evaluating a run need nothing but its folder.
"""
