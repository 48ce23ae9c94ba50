"""Training objectives, with `loss(model, image, **conditions)` and `sampler(name, steps)` for each noise process."""
