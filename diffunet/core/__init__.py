"""Settings, errors, files, random numbers and devices, used by every other package.

Imports nothing else from diffunet.
"""
