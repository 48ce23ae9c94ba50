"""Breaking things for real: `python -m trials` tells how to do it for hours, the tests do it for seconds."""
