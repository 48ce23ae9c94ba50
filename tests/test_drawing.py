import json

import numpy as np
import torch
from PIL import Image

from diffunet.drawing import draw_curves, draw_grid, to_picture


def test_pictures_are_their_pixels(tmp_path):
    for channels in (1, 3, 4):
        pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        to_picture(pixels, 8).save(tmp_path / "p.png")
        found = np.atleast_3d(np.array(Image.open(tmp_path / "p.png")))
        assert np.array_equal(found, pixels.permute(1, 2, 0))


def test_sixteen_bits_of_grey_are_kept_and_colour_brought_to_eight(tmp_path):
    pixels = torch.randint(0, 65536, (1, 5, 7), dtype=torch.int32)
    to_picture(pixels, 16).save(tmp_path / "p.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "p.png")), pixels[0])
    assert np.array(to_picture(torch.full((3, 2, 2), 65535), 16)).max() == 255


def test_a_grid_shows_every_picture_enlarged(tmp_path):
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 8, 8) * 40 + 10
    draw_grid(pixels, 8, tmp_path / "samples" / "grid.png", columns=3)
    grid = np.array(Image.open(tmp_path / "samples" / "grid.png"))
    assert grid.shape[:2] == (2 * (32 + 2) + 2, 3 * (32 + 2) + 2)
    grey = grid if grid.ndim == 2 else grid[..., 0]
    centres = [grey[18 + 34 * row, 18 + 34 * column] for row in range(2) for column in range(3)]
    assert centres == [10, 50, 90, 130, 170, 210]


def test_curves_are_drawn_and_grow(tmp_path):
    draw_curves(tmp_path)                                                      # no log, no picture, no error
    assert not (tmp_path / "curves.png").exists()
    lines = [{"step": step, "loss": 1 / step, "loss_t0-499": 0.5, "loss_t500-999": 2 / step} for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(tmp_path)
    picture = np.array(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert picture.shape[0] > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
