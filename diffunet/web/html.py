"""Fragments of HTML. Every word in them is escaped, since a run may come from a stranger."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..runs.figures import displayable, to_pil

SMALL = 128
"""Pixels; smaller images are shown with sharp pixels."""
FRAME_SIDE = 192
"""Pixels of an image while it denoises; larger ones are reduced."""
SIDES = ((1, 320), (4, 200), (9, 152), (16, 120))
"""Number of images, and up to which number, the width of each in CSS pixels."""


def escaped(text: object) -> str:
    """Return text for HTML, also where a template engine would read braces and dollars."""
    return html.escape(str(text)).replace("{", "&#123;").replace("$", "&#36;")


def data_uri(image: Image.Image) -> str:
    """Return an image as a PNG inside an address."""
    return file_uri(png_of(image))


def png_of(image: Image.Image) -> bytes:
    """Return an image as the content of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def file_uri(content: bytes) -> str:
    """Return the content of a PNG file as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def image_grid(pixels: Tensor, bit_depth: int, captions: Sequence[str] = (), selectable: bool = False) -> str:
    """Return images, pixels (N, C, H, W) of a bit depth, as a grid; each a button with its index if `selectable`."""
    images = [to_pil(image, 8) for image in displayable(pixels, bit_depth)]
    side = next((side for most, side in SIDES if len(images) <= most), 96)
    tag, cells = ("button" if selectable else "div"), []
    for index, image in enumerate(images):
        caption = escaped(captions[index]) if captions else ""
        button = f' type="button" data-index="{index}" aria-pressed="false" title="{caption}"' if selectable else ""
        sharp = " class=sharp" * (min(image.size) < SMALL)
        text = f"<span>{caption}</span>" if captions else ""
        alt = caption or f"image {index}, unfinished"
        cells.append(f'<{tag}{button}><img{sharp} src="{data_uri(image)}" alt="{alt}">{text}</{tag}>')
    return f'<div class="images" style="--side: {side}px">{"".join(cells)}</div>'


def frame_grid(images: Tensor) -> str:
    """Return estimates (B, C, H, W), in about [-1, 1], as a grid of small images."""
    longest = max(images.shape[-2:])
    if longest > FRAME_SIDE:
        images = F.interpolate(images, scale_factor=FRAME_SIDE / longest, mode="area")
    pixels = (images.nan_to_num().clamp(-1, 1) + 1) / 2
    return image_grid(pixels, 32)


def figure(content: bytes, caption: str) -> str:
    """Return a PNG file as a figure."""
    text = escaped(caption)
    return f'<figure><img src="{file_uri(content)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def layers(below: bytes, above: bytes, caption: str) -> str:
    """Return two PNG files, one on the other, with a slider of the opacity of the upper one."""
    text = escaped(caption)
    images = f'<img src="{file_uri(below)}" alt=""><img src="{file_uri(above)}" alt="{text}">'
    slider = '<input type="range" min="0" max="1" step="0.05" value="0.5" aria-label="Opacity">'
    return f'<figure class="layers"><div>{images}</div><figcaption>{text} {slider}</figcaption></figure>'


def legend(rows: Sequence[tuple[tuple[int, int, int], str, float]]) -> str:
    """Return the color and the name of each class, and its share in percent, as a table."""
    cells = "".join(
        f'<tr><td><span class="swatch" style="background: rgb{color}"></span></td><th scope="row">{escaped(name)}</th>'
        f"<td>{share:.1%}</td></tr>"
        for color, name, share in rows
    )
    return f'<div class="scroll"><table class="legend"><tbody>{cells}</tbody></table></div>'


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same columns as a table."""
    if not rows:
        return ""
    head = "".join(f"<th>{escaped(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def progress(label: str, done: float = math.nan) -> str:
    """Return a line of text, and above it a bar if the share that is done is given."""
    bar = "" if math.isnan(done) else f'<progress max="1" value="{done:.4f}"></progress>'
    return f'<div class="state" role="status">{bar}<p>{escaped(label)}</p></div>'
