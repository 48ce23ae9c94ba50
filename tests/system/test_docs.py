"""The snippets of the documentation, as a reader would run them: page by page, from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest

from diffunet.cli import main as commands

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for folder in ("docs", "benchmarks") for page in
                        sorted((ROOT / folder).rglob("*.md")))]


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page with the line on which each begins."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: block.start()].count("\n") + 1, block[1]) for block in found]


@pytest.mark.parametrize("page", ["README.md", "docs/backbone.md"])
def test_every_snippet_runs(page, in_a_new_folder):
    snippets = blocks(page, "python")
    assert len(snippets) >= 2
    session: dict = {}
    for line, snippet in snippets:
        code = "\n" * line + snippet                       # so that a traceback names the page's own line
        exec(compile(code, page, "exec"), session)


def typed_commands(page: str) -> list[list[str]]:
    """The words of every command of ours that the page shows."""
    lines = [line.removeprefix("$ ") for _, block in blocks(page, "") for line in block.splitlines()]
    starts = ("python train.py", "python sample.py", "diffunet ", "accelerate launch", "torchrun")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_shown_exists(page, capsys):
    for words in typed_commands(page):
        if "<" in words or "..." in words:
            continue
        name = words[1] if words[0] == "diffunet" else next(w for w in words if w.endswith(".py")).removesuffix(".py")
        command = commands.COMMANDS[name]
        with pytest.raises(SystemExit):
            command(["--help"])
        known = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
        own = words[words.index("train.py") :] if "train.py" in words else words
        flags = {word.partition("=")[0] for word in own if word.startswith("--")}
        assert flags - {"--train.learing_rate"} <= known, (page, words)        # the README's example of a mistake


def test_the_pages_link_to_what_is_there():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert ((ROOT / page).parent / target).exists(), (page, target)
