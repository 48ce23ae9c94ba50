"""Stress tests at full length: `python -m stress`. The test suite runs the same code for seconds."""
