"""The command of the page: mistakes, and a missing extra."""

import socket
import sys

import pytest
from helpers import run

from diffunet.runs.config import Config
from diffunet.runs.run import Run


@pytest.fixture
def runs(in_a_new_folder):
    """Return a folder with a run."""
    Run(in_a_new_folder / "runs" / "a").create(Config())
    return in_a_new_folder / "runs"


def test_without_gradio_it_is_one_line(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("app") == 2
    assert capsys.readouterr().err == 'diffunet app: needs gradio; run pip install "diffunet[app]"\n'


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "nowhere: no such folder; python train.py makes a run, in runs/default"),
        (["."], ".: no run to show in it; python train.py makes one, in runs/default"),
        (["--port", "many"], "--port: from 1 to 65535 expected (got many)"),
        (["--port", "0"], "--port: from 1 to 65535 expected (got 0)"),
        (["--prot", "80"], "--prot: unknown argument; did you mean --port?"),
    ],
)
def test_mistakes(runs, words, message, capsys):
    assert run("app", *words) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.slow
def test_a_port_that_is_taken(runs, capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("app", "runs", "--port", port) == 2
    assert capsys.readouterr().err.startswith(f"--port: {port} cannot be used on 127.0.0.1 (")
