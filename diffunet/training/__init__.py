"""The training loop: data order, checkpoints, averages of the weights, the log.

It is independent of the model and of the objective.
"""
