"""A run folder, its configuration, and ready objects made from it.

Sampling and evaluating a run need nothing beside its folder.
"""
