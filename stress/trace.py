"""train.py that notes which pictures each process trains on: `watched.py NOTES PRECISION ...` writes NOTES.RANK.

One line for each part of a batch: where in the whole batch it begins, and a digest of every picture as the network
sees it, flipped or not. In PRECISION `double` all that is computed is computed in fp64.
"""

import json
import os
import sys
import zlib

import torch

from diffunet.cli.main import train
from diffunet.data.dataset import ImageDataset

if __name__ == "__main__":
    notes, precision, *arguments = sys.argv[1:]
    if precision == "double":
        torch.set_default_dtype(torch.float64)
    prepare = ImageDataset.prepare

    def noted(self, batch, rng):
        prepared = prepare(self, batch, rng)
        pictures = [zlib.crc32(picture.numpy().tobytes()) for picture in prepared["image"]]
        with open(f"{notes}.{os.environ.get('RANK', '0')}", "a") as file:
            print(json.dumps([rng.positions.start, pictures]), file=file)
        return prepared

    ImageDataset.prepare = noted
    train(arguments)
