"""The training loop: data order, checkpoints, averages of the weights, the log.

Knows neither the model nor the objective.
"""
