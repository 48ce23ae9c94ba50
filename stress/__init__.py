"""Breaking things for real, for as long as it takes: `python -m trials`. The tests do the same for seconds."""
