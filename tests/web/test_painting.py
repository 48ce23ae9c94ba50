"""From an upload to the pixels of a run, and from paint to a mask."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diffunet.core.errors import UserError
from diffunet.data.config import DataConfig
from diffunet.web.painting import CANVAS, canvas_of, mask_of, read_image


def test_an_upload_of_the_size_of_the_run_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = DataConfig(resolution=(8, 12), channels=3, bit_depth=8)
    assert (read_image(tmp_path / "a.png", data).permute(1, 2, 0).numpy() == pixels).all()
    assert read_image(tmp_path / "a.png", data.model_copy(update={"resolution": (4, 4), "channels": 1})).shape == (
        1,
        4,
        4,
    )


def test_a_broken_upload(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"image: a\.png cannot be read"):
        read_image(tmp_path / "a.png", DataConfig(resolution=(8, 8), channels=1, bit_depth=8))


@pytest.mark.parametrize("size", [(8, 8), (8, 5), (600, 300)])
def test_paint_on_the_canvas_is_a_mask_of_the_run(size):
    """A rectangle over some pixels of the canvas hides the same pixels of the image."""
    height, width = size
    canvas = canvas_of(torch.zeros(1, *size, dtype=torch.uint8), 8)
    assert max(canvas.size) <= CANVAS
    layer = Image.new("RGBA", canvas.size)
    left, right, top, bottom = width // 4, width // 2, height // 2, height
    scale = canvas.width / width
    box = [round(left * scale), round(top * scale), round(right * scale) - 1, round(bottom * scale) - 1]
    ImageDraw.Draw(layer).rectangle(box, fill=(255, 120, 0, 90))
    expected = torch.zeros(1, *size, dtype=torch.bool)
    expected[:, top:bottom, left:right] = True
    mask = mask_of([layer], size)
    assert mask.shape == expected.shape
    assert (mask == expected).float().mean() > (0.99 if height > CANVAS else 0.9999)


def test_several_layers_and_none():
    layers = [Image.new("RGBA", (16, 16)) for _ in range(2)]
    for layer, corner in zip(layers, ((0, 0), (8, 8)), strict=True):
        ImageDraw.Draw(layer).rectangle([*corner, corner[0] + 7, corner[1] + 7], fill="red")
    assert mask_of(layers, (2, 2))[0].tolist() == [[True, False], [False, True]]
    assert not mask_of([], (2, 2)).any()


def test_a_touch_at_the_edge_of_a_pixel_does_not_count():
    layer = Image.new("RGBA", (20, 10))
    ImageDraw.Draw(layer).rectangle([0, 0, 11, 9], fill="red")  # the first pixel, and a fifth of the second
    assert mask_of([layer], (1, 2))[0].tolist() == [[True, False]]
