"""The tabs that sample images and follow a training."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..runs.run import Run
from .components import one_line
from .forms import Form
from .html import frame_grid, image_grid, progress
from .streaming import Frame
from .studio import Results, Samples, Session, Studio
from .training import fingerprint_of, state_of, view_of

if TYPE_CHECKING:
    import gradio as gr

SAMPLING = {"concurrency_limit": 1, "concurrency_id": "sampling", "show_progress": "hidden"}
"""One sampling at a time; others wait in the order in which they came."""
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
FRAME_SECONDS = 0.12
FOLLOW_SECONDS = 2
SELECT = """
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('button[data-index]');
  if (!chosen) return;
  element.querySelectorAll('button').forEach((each) => each.setAttribute('aria-pressed', each === chosen));
  trigger('select', {index: Number(chosen.dataset.index), value: ''});
});
"""
"""Marks the sample that is clicked, and passes its index on."""


def add_sample_tab(studio: Studio, form: Form, session: "gr.State", inputs: list["gr.Component"]) -> None:
    """Add the tab that samples images."""
    import gradio as gr

    with gr.Row():
        start = gr.Button("Sample", variant="primary", elem_id="start", scale=3)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=80)
    state = gr.HTML(progress("Choose on the left, then sample."), elem_id="state")
    images = gr.HTML(elem_id="images", js_on_load=SELECT)
    results, files = add_results("")
    bit_depth = form.own.data.bit_depth or 8

    def frames(visitor: Session, *values: Any) -> Iterator[dict]:
        visitor.keep(None)
        config = form.config(values)
        yield {**files(None), state: progress("Loading.")}
        for part in throttled(studio.sample(form, config, visitor.switch)):
            if isinstance(part, Frame):
                yield {images: frame_grid(part.images), state: progress(part.text, part.share)}
            else:
                visitor.keep(part.result)
                yield shown(part.result, config.num_images)

    def shown(samples: Samples | None, number: int) -> dict:
        parts = {state: progress(ended(samples, number)), **files(samples)}
        if samples:
            parts[images] = image_grid(samples.pixels, bit_depth, samples.captions, selectable=True)
        return parts

    def choose(visitor: Session, event: gr.EventData) -> None:
        visitor.selected = int(event.index)

    images.select(choose, session, queue=False, **QUIET)
    add_sampling(start, stop, state, session, inputs, one_line(frames), [state, images, *results])


def add_results(name: str) -> "tuple[list[gr.Block], Callable[[Results | None], dict]]":
    """Add a download and a command, and return them with a function that shows those of results."""
    import gradio as gr

    with gr.Column(visible=False) as results:
        download = gr.DownloadButton("Download", elem_id=f"{name}download")
        command = gr.Textbox(
            label="The same on a command line", buttons=["copy"], lines=1, max_lines=6, elem_id=f"{name}command"
        )

    def files(made: Results | None) -> dict:
        if made is None:
            return {results: gr.Column(visible=False)}
        button = gr.DownloadButton(value=made.archive)
        return {results: gr.Column(visible=True), download: button, command: made.command}

    return [results, download, command], files


def ended(samples: Samples | None, number: int) -> str:
    """Return how a sampling of a number of images ended."""
    found = len(samples.pixels) if samples else 0
    if not found:
        return "Stopped before any image was complete."
    return f"{found} image{'s' * (found > 1)}" if found == number else f"Stopped after {found} of {number} images."


def add_sampling(
    start: "gr.Button",
    stop: "gr.Button",
    state: "gr.HTML",
    session: "gr.State",
    inputs: list["gr.Component"],
    frames: Callable[..., Iterator[dict]],
    outputs: list["gr.Component"],
    failed: str = "Nothing was sampled.",
) -> None:
    """Let the buttons start and stop a sampling or a prediction, also while it still waits for others."""
    import gradio as gr

    def begin(visitor: Session) -> tuple:
        visitor.switch.off = False
        return gr.Button(interactive=False), gr.Button(interactive=True), progress("Waiting for others.")

    def halt(visitor: Session) -> None:
        visitor.switch.off = True

    def reported(*values: Any) -> Iterator[dict]:
        try:
            yield from frames(*values)
        except Exception:
            again = {start: gr.Button(interactive=True), stop: gr.Button(interactive=False)}
            yield {state: progress(failed), **again}  # what follows by `then` is not called
            raise

    def end(visitor: Session) -> tuple:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    begun = start.click(begin, session, [start, stop, state], queue=False, **QUIET)
    done = begun.then(reported, [session, *inputs], [*outputs, start, stop], api_visibility="private", **SAMPLING)
    done.then(end, session, [start, stop], queue=False, **QUIET)
    stop.click(halt, session, queue=False, **QUIET)


def add_run_tab(run: Run, steps: int, tab: "gr.Tab", others: list["gr.Tab"]) -> None:
    """Add the tab that follows a training of some steps, as long as none of the others is open."""
    import gradio as gr

    parts = {"state": gr.HTML(progress("Reading the log."), elem_id="training")}
    parts |= {name: gr.HTML() for name in ("health", "previews", "curves")}
    seen, timer = gr.State(()), gr.Timer(FOLLOW_SECONDS, active=False)

    def follow(known: tuple) -> dict:
        found = fingerprint_of(run)
        if found == known:
            return {parts["state"]: state_of(run, steps)}
        now = view_of(run, steps)
        return {seen: found, **{part: getattr(now, name) for name, part in parts.items()}}

    timer.tick(one_line(follow), seen, [seen, *parts.values()], **QUIET)
    opened = tab.select(lambda: gr.Timer(active=True), None, timer, queue=False, **QUIET)
    opened.then(one_line(follow), seen, [seen, *parts.values()], **QUIET)
    for other in others:
        other.select(lambda: gr.Timer(active=False), None, timer, queue=False, **QUIET)


def throttled(parts: Iterator) -> Iterator:
    """Yield the parts of a sampling, of the frames only as many as a browser can show."""
    shown = 0.0
    for part in parts:
        now = time.monotonic()
        if not isinstance(part, Frame) or now - shown >= FRAME_SECONDS:
            shown = now
            yield part
