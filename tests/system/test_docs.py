"""The snippets, commands, flags and links of the documentation, page by page."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from diffunet import Config
from diffunet.cli.main import main
from diffunet.runs.run import Run

ROOT = Path(__file__).parents[2]
CONDITIONS = {"label": "label", "caption": "text", "source": "image", "weather": "vector"}
"""The conditions of runs on the pages, which are flags of `sample.py`, and their types."""
PAGES = [
    str(page.relative_to(ROOT))
    for page in sorted(
        [*ROOT.glob("*.md"), *(page for folder in ("docs", "benchmarks") for page in (ROOT / folder).rglob("*.md"))]
    )
]
SHORTER = {"range(500)": "range(3)", '"steps": 100': '"steps": 10', '"steps": 120': '"steps": 12'}
"""What is trained for less long here than by the reader."""
OPTIONS = ("--resume", "--overwrite", "--force", "--benchmark", "--print_config")


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Return the code blocks of a page, each with its first line number."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [(text[: block.start()].count("\n") + 1, block[2]) for block in found if block[1] == language]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/backbone.md", "docs/library.md"])
def test_every_snippet_runs(page, in_a_new_folder):
    snippets = blocks(page, "python")
    assert len(snippets) >= 2
    session: dict = {}
    for line, snippet in snippets:
        for long, short in SHORTER.items():
            snippet = snippet.replace(long, short)
        code = "\n" * line + snippet  # so that a traceback has the page's line numbers
        exec(compile(code, page, "exec"), session)


def test_snippets_can_be_pasted_into_an_interpreter():
    """There, an indented block ends with an empty line or continues with else, except, ..."""
    for page in PAGES:
        for line, snippet in blocks(page, "python"):
            pairs = zip(snippet.splitlines(), snippet.splitlines()[1:], strict=False)
            broken = [after for before, after in pairs if before.startswith("    ") and re.match(r"[a-z]", after)]
            assert not broken, (page, line, broken)


def joined(block: str) -> list[str]:
    """Return the lines of a block, those that end with a backslash with the next one."""
    return block.replace("\\\n", " ").splitlines()


def typed_commands(page: str) -> list[list[str]]:
    """Return the words of every command of diffunet on a page, without a launcher before it."""
    lines = [line.removeprefix("$ ") for _, block in blocks(page, "") for line in joined(block)]
    starts = ("python train.py", "python sample.py", "diffunet ", "accelerate launch", "torchrun")
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]
    files = [[w if w != "diffunet" else f"{words[i + 1]}.py" for i, w in enumerate(words)] for words in words]
    firsts = [
        next((i for i, w in enumerate(words) if w in ("train.py", "sample.py") or words[i - 1] == "-m"), 0)
        for words in files
    ]
    return [words[first:] for words, first in zip(files, firsts, strict=True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """Return the folder of a run with CONDITIONS."""
    folder = tmp_path_factory.mktemp("run")
    Run(folder).create(Config(conditions={name: {"type": kind} for name, kind in CONDITIONS.items()}))
    return str(folder)


def help_of(name: str, run: str, capsys) -> set[str]:
    """Return the flags of a command."""
    with pytest.raises(SystemExit):
        main([name, run, "--help"])
    return set(re.findall(r"--[\w.]+", capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_accepted(page, run, capsys):
    for words in typed_commands(page):
        name = words[0].removesuffix(".py")
        words = [
            run if before == "--finetune.from" else word for before, word in zip(["", *words], words, strict=False)
        ]
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        if "..." in words:
            continue
        if name == "train" and not flags & set(OPTIONS):
            with pytest.raises(SystemExit) as exit:
                main([name, *words[1:], "--print_config"])
            assert exit.value.code == 0, (words, capsys.readouterr().err)
        kinds = [f"{before}={word}" for before, word in pairwise(words) if before in ("--config", "--objective")]
        shown = next((word for word in words if name == "describe" and word.endswith(".yaml")), run)
        known = help_of(name, [*kinds, "--config=configs/digits.yaml"][0] if name == "train" else shown, capsys)
        assert named(flags) <= known, words


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_dotted_flag_exists(page, run, capsys):
    known = {flag for name in ("train", "sample", "evaluate") for flag in help_of(name, run, capsys)}
    for objective in ("segmentation", "autoencoding"):
        known |= help_of("train", f"--objective={objective}", capsys)
    flags = set(re.findall(r"--[a-z]\w*\.[\w.]*\w", (ROOT / page).read_text(encoding="utf-8")))
    assert named(flags) <= known


def named(flags: set[str]) -> set[str]:
    """Return the flags as in `--help`, where a condition is called NAME."""
    return {re.sub(r"^--conditions\.\w+", "--conditions.NAME", flag) for flag in flags}


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_config_is_accepted(config, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", f"configs/{config}", "--print_config"])
    assert exit.value.code == 0, capsys.readouterr().err


def test_links_lead_somewhere():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:|\.\./\.\./actions)([^)#]*)#?([^)]*)\)", text):
            file = (ROOT / page).parent / target if target else ROOT / page
            assert file.exists(), (page, target)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {slug(heading) for heading in headings}, (page, target, anchor)


def slug(heading: str) -> str:
    """Return the anchor that GitHub and mkdocs give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_architecture_page_lists_every_file():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w]+\.py", page))
    there = {path.name for path in (ROOT / "diffunet").rglob("*.py") if not path.name.startswith("__")}
    assert there <= listed, there - listed


def test_plain_words():
    """The vocabulary of CONTRIBUTING.md."""
    for page in ["README.md", *(page for page in PAGES if page.startswith("docs"))]:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not re.findall(r"\b(told|wish|asked|pictures?)\b", text), page
