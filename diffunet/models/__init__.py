"""Networks: the U-Net, its layers and its conditioning.

A model is called `model(x_t, t, **conditions)`, or `model(image)`.
"""
