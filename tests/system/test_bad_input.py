"""Bad input, random and chosen: one line for each mistake, which begins with its place, and no traceback."""

import argparse
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import run, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffunet.cli.flags import add_flags, parse_flags
from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.runs.config import CONFIG_DIR, Config
from stress.cases import keys_of, with_value
from stress.fuzz_conditions import MIXED, read_metadata, write_metadata, write_photos
from stress.program import ROOT, program

often = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(CONFIG_DIR.glob("*.yaml"))}
KEYS = keys_of(Config)
PARSER = argparse.ArgumentParser()
add_flags(PARSER, Config)
words = st.text(max_size=20) | st.sampled_from([*KEYS, *"{}[]&*!|>%@`\"'#:-~", "1e400", "0x1f", ".nan", "<<"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates() | st.binary(max_size=4)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4))


def check_config(file: Path, argv: list[str] = ()) -> None:
    """Fail unless the config is valid, or each line of the error begins with the place of its mistake."""
    try:
        _, flags = parse_flags(PARSER, list(argv))
        config = settings_from(file, Config, flags)
    except UserError as mistake:
        lines = re.split(r"[\r\n\x85\u2028]", str(mistake))
        assert all(re.match(r"some\.yaml(:\d+)?: |--|.*: unknown argument", line) for line in lines), lines
    else:
        assert yaml.safe_load(config.to_yaml())


@often
@given(values)
def test_any_values(in_a_new_folder, values):
    Path("some.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.sampled_from(KEYS), values)
def test_any_value_for_any_key(in_a_new_folder, key, value):
    nested = with_value({}, Config, key, value)
    Path("some.yaml").write_text(yaml.safe_dump(nested, allow_unicode=True), encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.sampled_from(list(TEXTS)), st.data())
def test_any_change_to_the_shipped_configs(in_a_new_folder, name, data):
    text = TEXTS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(words) + text[stop:]
    Path("some.yaml").write_text(text, encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.binary(max_size=200))
def test_any_bytes(in_a_new_folder, data):
    Path("some.yaml").write_bytes(data)
    check_config(Path("some.yaml"))


@often
@given(st.lists(st.tuples(st.sampled_from(KEYS), words | values.map(repr)), max_size=4), st.lists(words, max_size=2))
def test_any_command_line(in_a_new_folder, flags, others):
    Path("some.yaml").touch()
    argv = [part for key, word in flags for part in (f"--{key}", word)] + others
    if not {"-h", "--help"} & {*argv}:
        check_config(Path("some.yaml"), argv)


@pytest.mark.slow
def test_stress_test_of_inputs_in_short_form():
    process = program("-m", "stress.inputs", "--cases", "40", cwd=ROOT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with photos, mixed.yaml and a run of all types of conditions."""
    folder = tmp_path_factory.mktemp("mixed")
    write_photos(folder / "photos")
    (folder / "mixed.yaml").write_text(MIXED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "--config", "mixed.yaml", "--train.steps", "1", "--train.preview_every", "9") == 0
    return folder


@pytest.fixture
def mixed(made, tmp_path, monkeypatch):
    """Return the working directory of one test, a copy of `made`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, command, *argv) -> str:
    """Call a command that must exit with code 2, and return the one line of its error message, after any bars."""
    capsys.readouterr()
    assert run(command, *argv) == 2
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.strip() and "|" not in line]
    assert len(lines) == 1, lines
    return lines[0]


TRAINING = {
    "numbers.column ageing": "conditions.numbers.column: no column ageing in photos; did you mean age?",
    "caption.column txt": "conditions.caption.column: no column txt in photos; did you mean text?",
    "label.column text": "conditions.label.column: column text of photos contains neither class numbers nor strings",
    "label.column weight": "conditions.label.column: column weight of photos contains neither class numbers",
    "caption.column age": "conditions.caption.column: column age of photos contains no captions (row 1 is 0 (int))",
    "caption.column blank": "conditions.caption.column: column blank of photos has only empty captions",
    "source.column age": "conditions.source.column: column age of photos does not contain images",
    "source.column label": "conditions.source.column: column label of photos contains disk, which is no file",
    "source.column shape": "conditions.source.column: column shape of photos has images of another shape (got 8×16 ",
    "numbers.column label": "conditions.numbers.column: column label of photos contains 'disk'; choose a column of num",
    "numbers.column lists": "conditions.numbers.column: column lists of photos has lists of 1 to 2 numbers; make them",
    "numbers.column blank": "conditions.numbers.column: column blank of photos contains ' '; choose a column of number",
    "numbers.width 3": "conditions.numbers.width: 3 numbers expected (got weight, age of photos: 2); leave width out",
    "caption.encoder nowhere": "conditions.caption.encoder: nowhere is no folder (and a hub id has the form own",
    "caption.encoder photos": "conditions.caption.encoder: photos has no config.json; give a folder of a transformers",
    "caption.heads 3": "mixed.yaml:5: conditions.caption: heads: 3 does not divide the width 16",
    "small.by [{downscale: 3}]": "conditions.small.by.0.downscale: does not divide 8×8 pixels (got 3); choose a common",
    "small.by [{mask: [0.1, 0.2]}, {gray: true}]": "conditions.small.by.1.gray: follows a mask; make the mask the last",
    "small.by [{gray: true}, {gray: true}]": "conditions.small.by.1.gray: ",
    "small.by [{gray: true, blur: 1}]": "mixed.yaml:8: conditions.small.by.0: a step has one of downscale",
    "small.noise [0.5, 0.1]": "conditions.small.noise: the range is [low, high] (got [0.5, 0.1])",
}


@pytest.mark.parametrize("change", TRAINING)
def test_a_mistake_in_a_condition_is_one_line(mixed, capsys, change):
    write_image(Path("photos/wide.bmp"), "L", (16, 8))
    records = read_metadata(Path("photos"))
    for index, record in enumerate(records):
        record |= {"blank": " ", "shape": "wide.bmp", "lists": [0.0] * (1 + index % 2)}
    write_metadata(Path("photos"), records)
    key, word = change.split(" ", 1)
    argv = ("--config", "mixed.yaml", "--train.output", "new", f"--conditions.{key}", word)
    argv += ("--conditions.caption.word_dropout", "null") * key.endswith("encoder")
    line = refused(capsys, "train", *argv)
    assert line.startswith(TRAINING[change])
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "name", ["time", "image", "x_t", "help", "seed", "steps", "agree", "augmentation", "no-name", "x" * 65]
)
def test_names_with_another_meaning_are_refused(mixed, capsys, name):
    argv = ("--conditions", f"{{{name}: {{type: label}}}}", "--train.output", "new")
    line = refused(capsys, "train", "--config", "mixed.yaml", *argv)
    assert line.startswith("--conditions: ")
    assert name[:30] in line


SAMPLING = {
    "--lable ring": "--lable: unknown argument; did you mean --label?",
    "--conditions {lable: ring}": "lable: not one of label, caption, source, numbers, small; did you mean label?",
    "--conditions {caption: []}": "caption: no values (got an empty list); give one, or none",
    "--label rnig": "label: rnig is not one of the 3 classes: disk, ring, star; did you mean ring?",
    "--guidance_scale {lable: 2}": "lable: not one of label, caption, source, numbers, small; did you mean label?",
    "--guidance_scale {label: -1}": "--guidance_scale",
    "--caption nothing.txt": "caption: nothing.txt cannot be read (No such file or directory); give a prompt or FILE",
    "--caption empty.txt": "caption: empty.txt has no prompts; write one on each line",
    "--source nothing.png": "source: nothing.png does not exist; give an image or a folder of images",
    "--source empty": "source: empty contains no images; give an image or a folder of images",
    "--source mixed.yaml": "source: mixed.yaml cannot be read (",
    "--source tiny.png": "source: tiny.png is too small (got 4×4); this run needs at least 8×8",
    "--source wide.png": "tile: the source gives an image of 8×16, but the run was trained on 8×8; add --tile 8",
    "--source wide.png --small half.png --tile 8": "source, small: sources of images of different sizes (got 8×16, 8×8",
    "--source wide.png --tile 5": "tile: ",
    "--numbers 1": "numbers: not 2 numbers (weight, age) (got 1); give 5.68, 1.47, for instance",
    "--numbers 1,many": "numbers: not 2 numbers (weight, age) (got 1,many); give ",
    "--numbers nan,1": "numbers: not 2 numbers (weight, age) (got nan,1); give ",
    "--caption none --agree": "agree: no source is given; give one, or leave agree out",
    "--source photos/sources/00.png --agree": "agree: source is not made from the image itself, so nothing has to",
}


@pytest.mark.parametrize("argv", SAMPLING)
def test_a_mistake_in_sampling_is_one_line(mixed, capsys, argv):
    write_image(Path("tiny.png"), "L", (4, 4))
    write_image(Path("half.png"), "RGB", (4, 4))
    write_image(Path("wide.png"), "L", (16, 8))
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n \n")
    words = [word.strip() for word in re.split(r" (?=--)|(?<=\w) ", argv, maxsplit=8)]
    line = refused(capsys, "sample", "run", "--steps", "2", "--num_images", "1", "--output", "out", *words)
    assert line.startswith(SAMPLING[argv])
    assert not Path("out").exists()


def test_a_prompt_longer_than_all_captions_is_refused(mixed, capsys):
    line = refused(capsys, "sample", "run", "--caption", "a small disk " * 100)
    assert re.match(r"caption: the prompt has \d+ tokens, the run was trained on at most \d+; shorten it", line)


DAMAGES = {
    "model/caption.tokenizer.json": "damaged (its SHA-256 is not the one in the run's config)",
    "examples/metadata.jsonl": "damaged",
}


@pytest.mark.parametrize("file", DAMAGES)
def test_damaged_files_of_conditions_are_named(mixed, capsys, file):
    path = Path("run", file)
    whole = path.read_bytes()
    for damage in (b"", whole[:-5], b"\xff" + whole, b"[]", b"{}\n[1]", b"null"):
        path.write_bytes(damage)
        line = refused(capsys, "sample", "run", "--caption", "a disk", "--num_images", "1", "--steps", "1")
        assert line.startswith(f"run/{file}: damaged"), damage
        assert DAMAGES[file] in line
    path.unlink()
    if file.startswith("model"):
        line = refused(capsys, "sample", "run", "--caption", "a disk")
        assert line == f"run/{file}: missing; restore it, or train again"
