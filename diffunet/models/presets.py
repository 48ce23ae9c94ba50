"""Published networks, as values of a `UNetConfig`: `UNetConfig(preset="unet2015")`."""

PLAIN = {"block": "plain", "norm": "none", "skips": "level", "middle_blocks": 0}

PRESETS = {
    # Ronneberger, Fischer & Brox 2015, figure 1: 572×572 -> 388×388, two classes
    "unet2015": {
        **PLAIN,
        "in_channels": 1,
        "out_channels": 2,
        "padding": "valid",
        "resampling": "pool",
        "levels": [
            {"channels": 64, "from_coarser": 64},
            {"channels": 128, "from_coarser": 128},
            {"channels": 256, "from_coarser": 256},
            {"channels": 512, "from_coarser": 512},
            {"channels": 1024, "up": []},
        ],
    },
    # Çiçek et al. 2016, figure 2: 132×132×116 -> 44×44×28, three input channels, three classes
    "unet3d": {
        **PLAIN,
        "dims": 3,
        "norm": "batch",
        "padding": "valid",
        "resampling": "pool",
        "transposed_bias": False,
        "levels": [
            {"channels": 64, "down": [32, 64]},
            {"channels": 128, "down": [64, 128]},
            {"channels": 256, "down": [128, 256]},
            {"channels": 512, "down": [256, 512], "up": []},
        ],
    },
    # Iglovikov & Shvets 2018, figure 1: the way down is VGG11 (for its weights see pretrained.py)
    "ternaus11": {
        **PLAIN,
        "out_channels": 1,
        "resampling": "pool_relu",
        "levels": [
            {"channels": 64, "blocks": 1, "up": [32], "from_coarser": 32},
            {"channels": 128, "blocks": 1, "up": [128], "from_coarser": 64},
            {"channels": 256, "blocks": 2, "up": [256], "from_coarser": 128},
            {"channels": 512, "blocks": 2, "up": [512], "from_coarser": 256},
            {"channels": 512, "blocks": 2, "up": [512], "from_coarser": 256},
            {"channels": 512, "blocks": 1, "up": []},
        ],
    },
    # Ho, Jain & Abbeel 2020, appendix B, CIFAR-10; the vector is the time
    "ddpm_cifar10": {
        "vector_dim": 512,
        "modulation": "shift",
        "resampling": "conv_end_padded",
        "dropout": 0.1,
        "norm_eps": 1e-6,
        "levels": [{"channels": 128}, {"channels": 256, "attention": True}, {"channels": 256}, {"channels": 256}],
    },
    # Dhariwal & Nichol 2021, table 4, ImageNet 64×64; the vector is time and class, half of the output a variance
    "adm_64": {
        "out_channels": 6,
        "vector_dim": 768,
        "resampling": "residual",
        "head_channels": 64,
        "dropout": 0.1,
        "levels": [
            {"channels": 192, "blocks": 3},
            {"channels": 384, "blocks": 3, "attention": True},
            {"channels": 576, "blocks": 3, "attention": True},
            {"channels": 768, "blocks": 3, "attention": True},
        ],
    },
}
