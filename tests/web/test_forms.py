"""Each kind of condition: from its inputs to words, and by the command line to the same pixels."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.runs.config import Config
from diffunet.runs.run import Run, load_run
from diffunet.sampling.editing import Edit
from diffunet.sampling.generate import SampleBatch
from diffunet.web.forms import HELD_OUT, IN_TURN, OWN, Form
from stress.fuzz_conditions import MIXED, NAMES, write_photos

SOURCE = {"type": "image", "by": [{"downscale": 2}], "channels": 1, "bit_depth": 8}
TYPES = {
    "label": {"type": "label", "num_classes": 2, "class_names": ["cat", "dog"]},
    "caption": {"type": "text", "sha256": "0", "max_length": 4},
    "source": SOURCE,
    "weather": {"type": "vector", "column": ["heat", "wind"], "width": 2, "mean": [20.0, 3.0], "std": [1.0, 1.0]},
}


def form_of(folder: Path, *names: str, **sections: dict) -> Form:
    """Return the form of a run without weights that has some conditions of TYPES."""
    Run(folder).create(Config.model_validate({"conditions": {name: TYPES[name] for name in names}, **sections}))
    return Form.of(Run(folder))


def values_of(form: Form, **changes) -> list:
    """Return the first values of a form, with other ones for the settings or the fields of a condition by name."""
    values = []
    for name, each in form.conditions.items():
        own = changes.pop(name, None)
        values += [field.value for field in each.fields] if own is None else own
    values += [changes.pop(key, field.value) for key, field in form.settings.items()]
    assert not changes
    return values


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("label", [IN_TURN], {}),
        ("label", ["1"], {"label": 1}),
        ("label", ["none"], {"label": "none"}),
        ("caption", [""], {"caption": "none"}),
        ("caption", ["a cat\n\n a dog "], {"caption": ["a cat", "a dog"]}),
        ("caption", ["/etc/passwd.txt"], {"caption": ["/etc/passwd.txt"]}),
        ("source", ["none", None], {"source": "none"}),
        ("weather", [OWN, 21, -0.5], {"weather": [[21.0, -0.5]]}),
        ("weather", ["none", None, None], {"weather": "none"}),
    ],
)
def test_values_become_words(tmp_path, name, values, words):
    form = form_of(tmp_path / "run", name)
    assert form.config(values_of(form, **{name: values})).conditions == words


def test_an_upload_becomes_its_file(tmp_path):
    form = form_of(tmp_path / "run", "source")
    Image.new("L", (32, 32)).save(tmp_path / "small.png")
    values = values_of(form, source=[OWN, str(tmp_path / "small.png")])
    assert form.config(values).conditions == {"source": str(tmp_path / "small.png")}


def test_text_that_names_a_file_is_not_read(tmp_path):
    """On a command line FILE.txt is read; of a visitor it is a prompt."""
    form = form_of(tmp_path / "run", "caption")
    (tmp_path / "secret.txt").write_text("secret")
    config = form.config(values_of(form, caption=[str(tmp_path / "secret.txt")]))
    with pytest.raises(UserError, match="tokenizer.json: missing"):  # it comes as far as its tokens
        form.own.inputs["caption"].parse("caption", config.conditions["caption"], tmp_path, (32, 32))


def test_the_fields_are_those_of_the_run(tmp_path):
    sample = {"guidance_scale": {"caption": 3.0}, "steps": 7, "num_images": 2}
    form = form_of(tmp_path / "run", *TYPES, sample=sample)
    first = {name: [(field.kind, field.label) for field in each.fields] for name, each in form.conditions.items()}
    assert first == {
        "label": [("choice", "label")],
        "caption": [("text", "caption")],
        "source": [("choice", "source"), ("file", "source")],
        "weather": [("choice", "weather"), ("number", "heat"), ("number", "wind")],
    }
    assert {name: field.value for name, field in form.settings.items()} == {
        "num_images": 2, "seed": 0, "sampler": "dpm++", "steps": 7, "guidance_scale.label": 1.0,
        "guidance_scale.caption": 3.0, "guidance_scale.source": 1.0, "guidance_scale.weather": 1.0,
        "agree": False, "tile": 0,
    }  # fmt: skip
    changed = values_of(form, **{"guidance_scale.source": 1.5, "weather": [OWN, 1, 2], "source": ["none", None]})
    scales = {"label": 1.0, "caption": 3.0, "source": 1.5, "weather": 1.0}
    assert form.config(changed).guidance_scale == scales


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label": ["2"]}, "label: not one of the choices"),
        ({"label": [["none"]]}, "label: not one of the choices"),
        ({"weather": [OWN, 1, None]}, "weather: a number is missing; fill in all 2"),
        ({"source": [OWN, None]}, "source: no file; upload an image"),
        ({"steps": None}, "steps: .*got null"),
        ({"steps": 1.5}, "steps: .*got 1.5"),
        ({"steps": 1001}, r"steps: more than the page makes \(got 1001\); use at most 1000, or sample.py"),
        ({"num_images": 65}, r"num_images: more than the page makes \(got 65\)"),
        ({"seed": -1}, "seed: .*got -1"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, changes, message):
    form = form_of(tmp_path / "run", *TYPES)
    safe = {"source": ["none", None]}
    with pytest.raises(UserError, match=message) as mistake:
        form.config(values_of(form, **safe | changes))
    assert "\n" not in str(mistake.value)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a folder with a source.png and the run of MIXED, which has all types of conditions."""
    folder = tmp_path_factory.mktemp("mixed")
    write_photos(folder / "photos")
    (folder / "mixed.yaml").write_text(MIXED)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "source.png")
    Image.fromarray(pixels[1, :4, :4]).convert("RGB").save(folder / "small.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        steps = "--train.steps", "1", "--train.preview_every", "9", "--conditions.caption.max_length", "32"
        assert run("train", "--config", "mixed.yaml", *steps) == 0
    return folder


ABSENT = {
    "label": ["none"],
    "caption": [""],
    "source": ["none", None],
    "numbers": ["none", 0, 0],
    "small": ["none", None],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label": ["1"], "seed": 7, "steps": 4},
        {"label": [IN_TURN]},
        {**ABSENT},
        {"caption": ["disk number 3"], "guidance_scale": 2.5},
        {"caption": ["a --small ring's $HOME\none more star"]},
        {**ABSENT, "caption": ["-ring.txt"]},
        {**ABSENT, "caption": ["null"], "label": ["2"]},
        {**ABSENT, "source": [OWN, "source.png"]},
        {**ABSENT, "source": [OWN, "source.png"], "small": [OWN, "small.png"], "agree": True},
        {**ABSENT, "numbers": [OWN, -1.5, 3]},
        {"numbers": [OWN, 0.1, 1e-7], "sampler": "ddim", "steps": 4},
        {"source": [HELD_OUT, None], "small": ["none", None]},
    ],
)
def test_the_command_makes_the_same_pixels(mixed, tmp_path, monkeypatch, changes):
    monkeypatch.chdir(mixed)
    form = Form.of(Run("run"))
    assert set(form.conditions) == set(NAMES)
    config = form.config(values_of(form, num_images=5, **changes))
    sampled = SampleBatch.concatenate(load_run("run").sampler(config).sample(config))

    words = shlex.split(form.command(config))
    assert words[:3] == ["python", "sample.py", "run"]
    assert run("sample", *words[2:], "--output", tmp_path / "images") == 0
    files = sorted(file for file in (tmp_path / "images").glob("*.png") if file.name != "grid.png")
    again = {file: torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files}
    assert len(again) == 5
    one_by_one = {tuple(image.flatten().tolist()) for image in again.values()}
    assert one_by_one == {tuple(image.flatten().tolist()) for image in sampled.pixels}


def test_a_command_overrules_what_the_run_samples_by_default(tmp_path):
    """Without --label the command would sample the label of the run's own section `sample`."""
    form = form_of(tmp_path / "run", "label", sample={"conditions": {"label": 1}})
    line = form.command(form.config(values_of(form)))
    assert shlex.split(line)[3:5] == ["--conditions", "{}"]


def test_a_command_has_the_name_of_an_upload_without_its_folder(tmp_path):
    form = form_of(tmp_path / "run", "source")
    Image.new("L", (32, 32)).save(tmp_path / "my photo.png")
    config = form.config(values_of(form, source=[OWN, str(tmp_path / "my photo.png")]))
    assert "--source 'my photo.png'" in form.command(config)


def test_the_command_of_an_edit_has_what_differs_from_its_own_defaults(tmp_path):
    """`diffunet edit` leaves conditions absent and guidance out, and has sampler and steps of its own."""
    form = form_of(tmp_path / "run", "label", sample={"guidance_scale": 1.5, "steps": 25, "seed": 3})
    edit = Edit()
    edit.defaults = {"sampler": "ancestral", "steps": 20}

    def line(**changes) -> list[str]:
        config = form.edit_config(form.config(values_of(form, **changes)), edit)
        return shlex.split(form.edit_command(config, edit, ["image.png", "--samples", "2"]))

    words = ["diffunet", "edit", str(tmp_path / "run"), "image.png", "--samples", "2"]
    assert line(label=["none"]) == [*words, "--guidance_scale", "1.5"]
    assert line(label=["1"], guidance_scale=1.0, steps=9) == [*words, "--label", "1", "--steps", "9"]
    assert line(guidance_scale=1.0, seed=4) == [*words, "--conditions", "{}", "--seed", "4"]
