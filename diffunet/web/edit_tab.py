"""The tab that edits: an image to paint on, before and after."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.errors import UserError
from .components import one_line
from .forms import Form
from .html import frame_grid, image_grid, progress
from .painting import CANVAS, canvas_of, mask_of, read_image
from .streaming import Frame
from .studio import Samples, Session, Studio
from .tabs import QUIET, add_results, add_sampling, ended, throttled

if TYPE_CHECKING:
    import gradio as gr

PAINT = "#f97316b0"
"""Orange that shows what is below it."""


def add_edit_tab(studio: Studio, form: Form, session: "gr.State", inputs: list["gr.Component"]) -> None:
    """Add the tab."""
    import gradio as gr

    bit_depth = form.own.data.bit_depth or 8
    original = gr.State(None)
    with gr.Row():
        upload = gr.UploadButton("Upload an image", file_types=["image"], type="filepath", elem_id="upload")
        take = gr.Button("Take the selected sample", elem_id="take")
    editor = gr.ImageEditor(
        type="pil",
        label="Paint what is to be generated anew",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=[PAINT], default_color=PAINT, color_mode="fixed", default_size=CANVAS // 10),
        canvas_size=(CANVAS, CANVAS),
        fixed_canvas=True,
        buttons=[],
        placeholder="Upload an image, or take a sample",
        elem_id="editor",
    )
    strength = gr.Slider(
        0.05,
        1,
        0.5,
        step=0.05,
        label="Strength",
        info="How much of the image changes, if nothing is painted.",
        elem_id="field-strength",
    )
    with gr.Row():
        start = gr.Button("Generate anew", variant="primary", elem_id="edit", scale=3)
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="edit-stop")
    state = gr.HTML(progress("Paint, then generate."), elem_id="edit-state")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=120):
            before = gr.HTML(elem_id="before")
        with gr.Column(scale=3, min_width=240):
            after = gr.HTML(elem_id="after")
    results, files = add_results("edit-")

    def show(pixels: Tensor) -> dict:
        return {
            original: pixels,
            editor: {"background": canvas_of(pixels, bit_depth), "layers": [], "composite": None},
            before: image_grid(pixels[None], bit_depth, ["before"]),
            after: "",
        }

    def uploaded(file: str | None) -> dict:
        return show(read_image(file, form.own.data))

    def taken(visitor: Session) -> dict:
        if visitor.samples is None or visitor.samples.run != form.run.folder:
            raise UserError("image: no sample of this run yet; sample some first, or upload an image")
        return show(visitor.samples.pixels[visitor.selected])

    shown = [original, editor, before, after]
    upload.upload(one_line(uploaded), upload, shown, **QUIET)
    take.click(one_line(taken), session, shown, **QUIET)

    def frames(visitor: Session, pixels: Tensor | None, painted: Any, part: float, *values: Any) -> Iterator[dict]:
        if pixels is None:
            raise UserError("image: none to edit; upload one, or take a sample")
        visitor.keep_edits(None)
        config = form.config(values)
        yield {**files(None), state: progress("Loading.")}
        mask = mask_of((painted or {}).get("layers", []), tuple(pixels.shape[1:]))
        for item in throttled(studio.edit(form, config, pixels, mask, part, visitor.switch)):
            if isinstance(item, Frame):
                yield {after: frame_grid(item.images), state: progress(item.text, item.share)}
            else:
                visitor.keep_edits(item.result)
                yield edited(item.result, config.num_images)

    def edited(samples: Samples | None, number: int) -> dict:
        parts = {state: progress(ended(samples, number)), **files(samples)}
        if samples:
            parts[after] = image_grid(samples.pixels, bit_depth, samples.captions)
        return parts

    values = [original, editor, strength, *inputs]
    add_sampling(start, stop, state, session, values, one_line(frames), [state, after, *results])
