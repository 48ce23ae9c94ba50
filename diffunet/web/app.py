"""The page in gradio: a form beside the tabs of the run that is chosen."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..core.errors import UserError
from ..runs.prediction import PredictionConfig
from .components import components_of, predict_components_of
from .edit_tab import add_edit_tab
from .forms import Form
from .guard import guards
from .html import escaped
from .predict_form import PredictForm
from .predict_tab import add_predict_tab
from .runs import RunFolder
from .studio import Session, Studio
from .tabs import QUIET, add_run_tab, add_sample_tab
from .uploads import MAX_BYTES, MAX_PIXELS

if TYPE_CHECKING:
    import gradio as gr

STYLE = Path(__file__).with_name("page.css")
FONT = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
QUEUED = 100
"""Events that wait at most; further ones are refused."""
SECONDS_KEPT = 3600
"""How long the files of a visitor who left are kept."""


def serve(folder: Path, host: str, port: int) -> None:
    """Show the page until Ctrl-C. Raise UserError without runs, without gradio, or if the port is taken."""
    with served(folder, host, port) as address, suppress(KeyboardInterrupt):
        print(f"{address} shows {folder}; Ctrl-C stops it", flush=True)
        threading.Event().wait()


@contextmanager
def served(folder: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve the page meanwhile. Yield its address. Raise UserError as `serve` does.

    port: 0 for any that is free.
    """
    runs = RunFolder(folder)
    runs.check()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise UserError('diffunet app: needs gradio; run pip install "diffunet[app]"') from None
    with tempfile.TemporaryDirectory(prefix="diffunet_") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache  # gradio serves all of it; the usual one is shared by all programs
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also where gradio decodes; above twice as many Pillow refuses
        page = build_page(runs, Path(cache))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or free_port(host),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                allowed_paths=[],
                max_file_size=MAX_BYTES,
                strict_cors=True,
                app_kwargs={"middleware": guards(host), "docs_url": None, "redoc_url": None, "openapi_url": None},
                theme=gr.themes.Default(font=FONT, font_mono=MONO, primary_hue="blue", radius_size="md"),
                css=STYLE.read_text(encoding="utf-8"),
            )
        except OSError as error:
            raise UserError(f"--port: {port} cannot be used on {host} ({error}); choose another") from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def free_port(host: str) -> int:
    """Return a port that nothing listens at."""
    import socket

    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def build_page(runs: RunFolder, cache: Path) -> "gr.Blocks":
    """Return the page of the runs; `cache` is the folder of its files."""
    import gradio as gr

    studio, names = Studio(cache), runs.names()
    with gr.Blocks(title="diffunet", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        session = gr.State(Session(), time_to_live=SECONDS_KEPT, delete_callback=Session.close)
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>diffunet</h1>", scale=1, min_width=120)
            chosen = gr.Dropdown(
                names, value=names[0], label="Run", interactive=True, scale=0, min_width=280, elem_id="run"
            )
        page.load(lambda: gr.Dropdown(choices=runs.names()), outputs=chosen, **QUIET)

        @gr.render(inputs=chosen)
        def show(name: str) -> None:
            try:
                run = runs.open(name)
                form = PredictForm.of(run) if run.task == PredictionConfig.task else Form.of(run)
            except UserError as mistake:
                gr.HTML(f'<p role="alert">{escaped(mistake)}</p>')
                return
            show_run(studio, form, session)

    return page.queue(max_size=QUEUED, default_concurrency_limit=4)


def show_run(studio: Studio, form: Form | PredictForm, session: "gr.State") -> None:
    """Add the form and the tabs of a run: those that sample and edit, or the one that predicts."""
    import gradio as gr

    predicts = isinstance(form, PredictForm)
    gr.HTML(f"<h2>{escaped(form.run.folder.resolve().name)}</h2>", elem_id="run-name")  # for screen readers
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            inputs = predict_components_of(form) if predicts else components_of(form)
        first = "predict" if predicts else "sample"  # else a tab stays selected that the former run had
        with gr.Column(scale=3, min_width=320), gr.Tabs(selected=first):
            if predicts:
                with gr.Tab("Predict", id="predict") as predicting:
                    add_predict_tab(studio, form, session, inputs)
                others = [predicting]
            else:
                with gr.Tab("Sample", id="sample") as sampling:
                    add_sample_tab(studio, form, session, inputs)
                with gr.Tab("Edit", id="edit") as editing:
                    add_edit_tab(studio, form, session, inputs)
                others = [sampling, editing]
            with gr.Tab("Run", id="run") as training:
                add_run_tab(form.run, form.own.train.steps, training, others)
