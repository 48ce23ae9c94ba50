"""Training objectives: what the network predicts, and the loss.

Each has `loss(model, image, **conditions)` and `sampler(name, steps)`.
"""
