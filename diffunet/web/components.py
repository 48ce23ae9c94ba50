"""From the fields of a form to components of gradio, and from errors to its messages."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError, describe_oserror, ran_out_of_memory
from .forms import OWN, ConditionInput, Field, Form
from .html import escaped
from .predict_form import PredictForm

if TYPE_CHECKING:
    import gradio as gr

MAIN_SETTINGS = 2
"""Settings that are always in view: the number of images and the seed."""
RADIO_CHOICES = 13
"""More choices are a list to search in."""


def components_of(form: Form) -> list["gr.Component"]:
    """Add all inputs of a form, and return them in the order of its fields."""
    import gradio as gr

    inputs = []
    for name, each in form.conditions.items():
        inputs += _condition(name, each)
    settings = [(key.replace(".", "-"), field) for key, field in form.settings.items()]
    inputs += [component_of(*each) for each in settings[:MAIN_SETTINGS]]
    with gr.Accordion("Sampler", open=False, elem_id="sampler"):
        inputs += [component_of(*each) for each in settings[MAIN_SETTINGS:]]
    return inputs


def predict_components_of(form: PredictForm) -> list["gr.Component"]:
    """Add the inputs for predictions, and return them: the image, then the settings in order."""
    image = component_of("image", form.image)
    return [image, *(component_of(key, field) for key, field in form.settings.items())]


def _condition(name: str, each: ConditionInput) -> list["gr.Component"]:
    """Add the fields of one condition; those after a choice are shown for that choice alone."""
    import gradio as gr

    first, *others = each.fields
    chosen = component_of(name, first)
    if not others:
        return [chosen]
    with gr.Column(visible=first.value == OWN) as group:
        components = [component_of(f"{name}-{place}", field) for place, field in enumerate(others)]
    chosen.change(lambda choice: gr.Column(visible=choice == OWN), chosen, group, queue=False, api_visibility="private")
    return [chosen, *components]


def component_of(name: str, field: Field) -> "gr.Component":
    """Add the input of one field, and return it."""
    import gradio as gr

    common: dict[str, Any] = {"label": field.label, "interactive": True, "elem_id": f"field-{name}"}
    about: dict[str, Any] = {"info": field.info or None}
    if field.kind == "choice" and len(field.choices) <= RADIO_CHOICES:
        return gr.Radio(list(field.choices), value=field.value, **common, **about)
    if field.kind == "choice":
        return gr.Dropdown(list(field.choices), value=field.value, filterable=True, **common, **about)
    if field.kind == "text":
        return gr.Textbox(field.value, lines=2, max_lines=6, **common, **about)
    if field.kind == "word":
        return gr.Textbox(field.value, lines=1, max_lines=1, **common, **about)
    if field.kind == "flag":
        return gr.Checkbox(field.value, **common, **about)
    if field.kind == "file":
        return gr.File(type="filepath", file_count="single", height=120, **common)
    if field.range:
        return gr.Slider(*field.range, value=field.value, step=1, **common, **about)
    return gr.Number(field.value, precision=0 if field.whole else None, **common, **about)


def one_line(handler: Callable) -> Callable:
    """Return the handler, whose errors for people are shown as one line, without a traceback."""
    import gradio as gr

    def as_message(error: Exception) -> gr.Error | None:
        if isinstance(error, UserError):
            text = str(error)
        elif isinstance(error, OSError):
            text = describe_oserror(error)
        elif ran_out_of_memory(error):
            text = "out of memory: use fewer or smaller images"
        else:
            return None
        return gr.Error(escaped(text), title="", print_exception=False, duration=12)

    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def generate(*args: Any) -> Any:
            try:
                yield from handler(*args)
            except Exception as error:
                raise as_message(error) or error from None

        return generate

    @wraps(handler)
    def call(*args: Any) -> Any:
        try:
            return handler(*args)
        except Exception as error:
            raise as_message(error) or error from None

    return call
