"""Kinds of training: a configuration becomes a `Task`, and `fit` trains it.

Resuming, locking, automatic batch size and time limits are written once, in `fit`.
"""
