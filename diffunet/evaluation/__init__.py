"""Evaluation: features, metrics with errors and reference values, records, the training monitor.

A classifier trained here gives features where no pretrained network is at hand.
"""
