"""Commands: words in, exit codes out.

No library code lives here.
"""
