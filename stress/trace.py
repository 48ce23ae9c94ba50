"""train.py that records which images each process trains on: `trace.py FILE PRECISION ...` writes FILE.RANK.

Each line is a micro-batch: its first position in the whole batch, and a checksum of every image as the network sees
it, flipped or not. PRECISION is single or double; double computes everything in fp64.
"""

import json
import os
import sys
import zlib

import torch

from diffunet.cli.train import train
from diffunet.data.dataset import ImageDataset

if __name__ == "__main__":
    trace, precision, *arguments = sys.argv[1:]
    if precision == "double":
        torch.set_default_dtype(torch.float64)
    prepare = ImageDataset.prepare

    def traced(self, batch, rng):
        prepared = prepare(self, batch, rng)
        if rng.positions.start is None:  # not of a training step, but of a preview
            return prepared
        checksums = [zlib.crc32(image.numpy().tobytes()) for image in prepared["image"]]
        with open(f"{trace}.{os.environ.get('RANK', '0')}", "a") as file:
            print(json.dumps([rng.positions.start, checksums]), file=file)
        return prepared

    ImageDataset.prepare = traced
    train(arguments)
