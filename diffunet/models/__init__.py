"""Networks, called as `model(x_t, t, **conditions)` or `model(image)`: the U-Net, its layers and its conditioning."""
