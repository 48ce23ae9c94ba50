"""Fragments of HTML: escaped words, pixels that survive."""

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from diffunet.web.html import FRAME_SIDE, escaped, frame_grid, image_grid, layers, legend, progress, table

HOSTILE = "<img src=x onerror=alert(1)>\"'${7*7}{{7*7}}&"


def images_in(text: str) -> list[np.ndarray]:
    """Return the pixels of all images in a fragment."""
    found = re.findall(r"data:image/png;base64,([^\"]+)", text)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(content)))) for content in found]


def test_words_are_escaped():
    for text in (escaped(HOSTILE), progress(HOSTILE), table([{HOSTILE: HOSTILE}]),
                 legend([((0, 0, 0), HOSTILE, 1.0)]), layers(b"", b"", HOSTILE),
                 image_grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 8, [HOSTILE], selectable=True)):  # fmt: skip
        assert "<img src=x" not in text
        assert "$" not in text and "{" not in text
        assert "&#123;&#123;7*7}}&amp;" in text


def test_pixels_survive():
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    shown = images_in(image_grid(pixels, 8, ["a", "b", "c"]))
    assert all(
        (image == expected.permute(1, 2, 0).numpy()).all() for image, expected in zip(shown, pixels, strict=True)
    )


def test_estimates_are_clipped_and_reduced():
    images = torch.tensor([-7.0, -1, 0, 1, 7, torch.nan]).reshape(6, 1, 1, 1).expand(6, 1, 4, 4)
    assert [image[0, 0] for image in images_in(frame_grid(images))] == [0, 0, 128, 255, 255, 128]
    assert images_in(frame_grid(torch.zeros(1, 3, 1024, 512)))[0].shape == (FRAME_SIDE, FRAME_SIDE // 2, 3)
