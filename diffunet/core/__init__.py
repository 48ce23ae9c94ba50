"""Settings, errors, files, random numbers, devices: what every other package stands on.

Imports nothing of diffunet.
"""
