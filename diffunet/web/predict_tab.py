"""The tab that predicts an image: its classes or numbers, and their files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .components import one_line
from .html import progress
from .predict_form import PredictForm
from .predictions import predict
from .streaming import Frame
from .studio import Session, Studio
from .tabs import add_results, add_sampling, throttled

if TYPE_CHECKING:
    import gradio as gr

OPACITY = """
element.addEventListener('input', (event) => {
  event.target.closest('.layers')?.style.setProperty('--opacity', event.target.value);
});
"""
"""Sets the opacity of the classes on an image to the value of the slider below it."""


def add_predict_tab(studio: Studio, form: PredictForm, session: "gr.State", inputs: list["gr.Component"]) -> None:
    """Add the tab. inputs: the image, and the settings in order."""
    import gradio as gr

    with gr.Row():
        start = gr.Button("Predict", variant="primary", elem_id="predict", scale=3)
        stop = gr.Button("Stop", interactive=False, elem_id="predict-stop", scale=1, min_width=80)
    state = gr.HTML(progress("Upload an image on the left, then predict."), elem_id="predict-state")
    shown = gr.HTML(elem_id="prediction", js_on_load=OPACITY)
    results, files = add_results("predict-")

    def frames(visitor: Session, image: str | None, *values: Any) -> Iterator[dict]:
        visitor.keep_predicted(None)
        config = form.config(values)
        yield {**files(None), shown: "", state: progress("Loading.")}
        for part in throttled(predict(studio, form, config, image, visitor.switch)):
            if isinstance(part, Frame):
                yield {state: progress(f"Predicted {part.step} tile{'s' * (part.step > 1)}.")}
                continue
            visitor.keep_predicted(part.result)
            words = part.result.summary if part.result else "Stopped before the prediction was complete."
            yield {**files(part.result), shown: part.result.shown if part.result else "", state: progress(words)}

    add_sampling(
        start, stop, state, session, inputs, one_line(frames), [state, shown, *results], "Nothing was predicted."
    )
