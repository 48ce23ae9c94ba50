"""Predictions for visitors: the files of `diffunet predict`, what is shown of them, and files that cannot be read."""

import base64
import io
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL_PREDICTOR, run, write_image, write_pairs
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.data.labels import COLOR, Labels
from diffunet.runs.painting import overlay, overlay_palette, palette_of
from diffunet.runs.predict import Prediction
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run
from diffunet.web.predict_form import PredictForm
from diffunet.web.prediction_view import class_parts, deviation_part, number_parts, objects_part, shares_of
from diffunet.web.predictions import Predicted, predict, read_upload
from diffunet.web.streaming import Finished, Frame, Switch
from diffunet.web.studio import Session, Studio
from diffunet.web.uploads import MAX_BYTES

RUNS = {"classes": (), "objects": ("--data.labels", "instances"), "numbers": ("--objective", "regression")}
"""Runs by name, and their flags."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with the runs RUNS."""
    home = tmp_path_factory.mktemp("runs")
    (home / "predictor.yaml").write_text(SMALL_PREDICTOR)
    write_pairs(home / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, flags in RUNS.items():
            quick = "--train.steps", 2, "--train.gradient_accumulation_steps", 1, "--train.output", name
            assert run("train", "--config", "predictor.yaml", *quick, *flags) == 0
    return home


@pytest.fixture
def studio(runs, in_a_new_folder) -> Studio:
    """Return a studio in a working directory that has the runs, and a folder `uploads`."""
    for name in RUNS:
        Path(name).symlink_to(runs / name)
    Path("uploads").mkdir()
    Path("cache").mkdir()
    return Studio(Path("cache"))


def values_of(form: PredictForm, **settings) -> list:
    """Return the first values of a form, with other ones for some settings."""
    return [settings.get(key, field.value) for key, field in form.settings.items()]


def predicted(studio: Studio, name: str, file: Path, **settings) -> Predicted:
    """Predict an upload with a run and the values of some settings."""
    form = PredictForm.of(Run(name))
    *frames, last = predict(studio, form, form.config(values_of(form, **settings)), file, Switch())
    assert all(isinstance(frame, Frame) for frame in frames)
    assert isinstance(last, Finished)
    assert last.result
    return last.result


def files_of(folder: str) -> dict[str, bytes]:
    """Return the contents of a folder by their names."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("classes", {}, {"{}.png", "overlays/{}.png"}),
        ("classes", {"average": True, "tile": " 32 "}, {"{}.png", "overlays/{}.png", "{}.std.npy"}),
        ("objects", {}, {"{}.png", "overlays/{}.png"}),
        ("numbers", {"average": True}, {"{}.npy", "{}.std.npy"}),
    ],
)
@pytest.mark.parametrize("mode, file", [("RGB", "a photo.png"), ("I;16", "-deep.tif"), ("L", "gray.jpg")])
def test_the_files_are_those_of_the_command(studio, name, settings, expected, mode, file):
    path = write_image(Path("uploads") / file, mode, (37, 22))
    found = predicted(studio, name, path, **settings)
    with zipfile.ZipFile(found.archive) as archive:
        archive.extractall("page")
    assert list(found.archive.parent.iterdir()) == [found.archive]
    shutil.copy(path, path.name)  # the command names the upload without its folder
    words = shlex.split(found.command)
    assert words[:3] == ["diffunet", "predict", name]
    assert run(*words[1:]) == 0
    output = words[words.index("--output") + 1]
    assert files_of("page") == files_of(output)
    assert files_of("page").keys() == {each.format(path.stem) for each in expected}


def test_the_files_of_the_former_prediction_are_removed(studio):
    session, path = Session(), write_image(Path("uploads/a.png"), "L")
    first, second = (predicted(studio, "classes", path) for _ in range(2))
    session.keep_predicted(first)
    session.keep_predicted(second)
    assert (first.archive.exists(), second.archive.exists()) == (False, True)
    session.close()
    assert list(studio.folder.iterdir()) == []


def test_a_stop_between_two_tiles_leaves_nothing(studio):
    path, form, switch = write_image(Path("uploads/a.png"), "L", (99, 99)), PredictForm.of(Run("classes")), Switch()
    parts = predict(studio, form, form.own.predict, path, switch)
    assert isinstance(next(parts), Frame)
    switch.off = True
    *_, last = parts
    assert last == Finished(None)
    assert list(studio.folder.iterdir()) == []


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────


def images_in(*parts: str) -> list[torch.Tensor]:
    """Return the images inside HTML, (C, H, W)."""
    found = [base64.b64decode(text) for part in parts for text in re.findall(r"base64,([^\"]+)", part)]
    return [torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1) for content in found]


@pytest.mark.parametrize("codes", [(0, 255), (3, 5, 9), tuple(COLOR + color for color in (0xFF0000, 0xFF00, 0xFF))])
def test_the_legend_has_the_colors_of_the_image_and_the_shares_of_the_classes(codes):
    """At the opacity at first, what lies on the image makes the overlay in the files."""
    names = ("<b>", "b", "c")[: len(codes)]
    labels, classes = Labels(codes, names), torch.zeros(10, 20, dtype=torch.int64)
    classes[:3, :5], classes[5:] = 1, len(codes) - 1
    output = torch.nn.functional.one_hot(classes, len(codes)).permute(2, 0, 1).float()
    image = torch.rand(1, 10, 20)
    layered, alone, legend = class_parts(image, Prediction(output, torch.zeros_like(output)), labels)

    below, above, colored = images_in(layered, alone)
    opacity = 0.5 * above[3:].float() / 255
    mixed = (below * (1 - opacity) + above[:3] * opacity).floor()
    assert torch.equal(mixed, overlay(image, classes, overlay_palette(palette_of(labels))).float())
    assert torch.equal(colored, torch.where(classes > 0, above[:3], colored))

    shares = shares_of(classes, labels)
    expected = [[85, 115], [85, 15, 100]][len(codes) - 2]
    assert shares == [(name, number / 200) for name, number in zip(names, expected, strict=True)]
    assert sum(share for _, share in shares) == 1
    first = [tuple(colored[:, row, column].tolist()) for row, column in ((4, 0), (0, 0), (9, 0))[: len(codes)]]
    assert re.findall(r"rgb(\([^)]*\))", legend) == [str(color) for color in first]
    assert re.findall(r"<th.*?>(.*?)</th>", legend) == ["&lt;b&gt;", "b", "c"][: len(codes)]
    assert re.findall(r"([\d.]+)%", legend) == [f"{number / 2:.1f}" for number in expected]


def test_objects_are_counted_by_their_numbers_and_have_colors(tmp_path):
    numbers = np.zeros((9, 40), np.uint16)
    for index in range(10):
        numbers[2:5, 4 * index : 4 * index + 2] = 300 * (index + 1)  # a number may be missing
    Image.fromarray(numbers).save(tmp_path / "a.png")
    part = objects_part(tmp_path / "a.png")
    assert "10 objects" in part
    (painted,) = images_in(part)
    assert torch.equal(painted.sum(0) > 0, torch.from_numpy(numbers > 0))
    assert len({tuple(painted[:, 3, 4 * index].tolist()) for index in range(7)}) == 7
    Image.fromarray((numbers == 300).astype(np.uint8)).save(tmp_path / "a.png")
    assert "1 object<" in objects_part(tmp_path / "a.png")


def test_numbers_are_shown_with_their_range(tmp_path):
    values = torch.linspace(-3, 12, 200).reshape(1, 10, 20)
    parts = number_parts(torch.rand(1, 10, 20), Prediction(values, torch.zeros_like(values)))
    assert "from -3 to 12" in parts[1]
    _, shown = images_in(*parts[:2])
    assert shown.shape == (3, 10, 20)
    assert (shown[0, 0, 0], shown[0, -1, -1]) == (0, 255)
    assert parts[2] == ""
    two = torch.cat([values, -values])
    parts = number_parts(torch.rand(3, 10, 20), Prediction(two, torch.zeros_like(two)))
    assert "channel 1, from -3 to 12" in parts[1]
    assert [re.findall(r"<td>(.*?)</td>", row) for row in parts[2].split("<tr>")[2:]] == [
        ["1", "-3", "4.5", "12"],
        ["2", "-12", "-4.5", "3"],
    ]
    np.save(tmp_path / "a.std.npy", values[0].abs())
    assert "Deviation, from 0.0" in deviation_part(tmp_path / "a.std.npy")


def test_a_large_image_is_shown_smaller(studio):
    path = write_image(Path("uploads/a.png"), "L", (1700, 20))
    found = predicted(studio, "objects", path, tile="64")
    assert {tuple(image.shape[1:]) for image in images_in(found.shown)} == {(9, 768)}
    assert found.summary == "a.png, 20×1700 pixels"


def test_a_tiny_image(studio):
    found = predicted(studio, "classes", write_image(Path("uploads/a.png"), "L", (3, 2)))
    assert "2×3 pixels" in found.summary


# ── files that cannot be predicted ────────────────────────────────────────────────────────────────


def content_of(values: np.ndarray) -> bytes:
    """Return the content of a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def stack() -> bytes:
    """Return a TIFF of three pages."""
    file, page = io.BytesIO(), Image.new("L", (9, 7))
    page.save(file, format="TIFF", save_all=True, append_images=[page, page])
    return file.getvalue()


def png(size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 90).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.png", b"", "image: a.png cannot be read (not an image); upload an image"),
        ("a.png", png()[:2000], "image: a.png: "),
        ("a.png", png((4097, 4097))[:100], "image: a.png has too many pixels (got 4097×4097); use at most 16,777,216"),
        ("a.png", bytes(MAX_BYTES + 1), "image: a.png is too large (got 20 MB); use at most 20 MB"),
        ("a.tif", stack()[:-40], "image: a.tif"),
        ("a.tif", stack(), "image: a.tif has 3 pages; upload one, or use diffunet predict"),
        ("a.npy", content_of(np.zeros((5, 8, 9), np.uint8)), "image: a.npy: 5 channels (expected 1)"),
        ("a.npy", content_of(np.full((8, 9), np.nan)), "image: a.npy: NaN or infinite values"),
        ("a.npy", content_of(np.zeros((8, 9), np.complex64)), "image: a.npy: 2 channels (expected 1)"),
        ("a.npy", content_of(np.zeros((8, 9), "<M8[D]")), "image: a.npy cannot be read (values of type datetime64"),
        ("a.npy", content_of(np.zeros((8, 9)))[:-30], "image: a.npy: "),
        ("\x1b[2J.png", png()[:2000], "image: \\x1b[2J.png: "),
    ],
)
def test_a_mistake_is_one_line(studio, name, content, problem):
    path = Path("uploads", name)
    path.write_bytes(content)
    with pytest.raises(UserError) as mistake:
        read_upload(PredictForm.of(Run("classes")), path.absolute())
    assert str(mistake.value).startswith(problem)
    assert str(mistake.value).isprintable()
    assert "uploads" not in str(mistake.value)


def test_without_a_file_or_weights_it_is_one_line(studio, runs):
    with pytest.raises(UserError, match="image: no file; upload an image"):
        read_upload(PredictForm.of(Run("classes")), None)
    shutil.copytree(runs / "classes", "new", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="missing; the run has no checkpoint yet"):
        predicted(studio, "new", write_image(Path("uploads/a.png"), "L"))


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tile": "0"}, "--tile: .*got 0"),
        ({"tile": " 1.5"}, "--tile: .*got 1.5"),
        ({"tile": "[" * 10_000}, "--tile: not a valid value"),
        ({"tile": "many"}, "--tile: .*got many"),
        ({"tile": "4096"}, r"--tile: more than the page makes \(got 4096\); use at most 1024, or diffunet predict"),
        ({"tile": "17"}, "--tile: some level would not halve 17 evenly; use 16 or 18"),
        ({"average": None}, "--average: .*got null"),
    ],
)
def test_settings_that_cannot_be_used(studio, settings, message):
    with pytest.raises(UserError, match=message) as mistake:
        predicted(studio, "classes", write_image(Path("uploads/a.png"), "L"), **settings)
    assert "\n" not in str(mistake.value)


def test_the_fields_are_the_settings_of_predictions(studio):
    form = PredictForm.of(Run("classes"))
    fields = {key: (field.kind, field.value, field.whole) for key, field in form.settings.items()}
    assert fields["tile"] == ("word", "", False)
    assert fields["average"] == ("flag", False, False)
    assert list(fields) == ["tile", "average"]
    assert "watershed" in PredictForm.of(Run("objects")).settings
    assert form.settings["tile"].info.endswith("empty: the patch, or as near as the network takes.")
    assert form.command(form.own.predict, ["a.png"]) == "diffunet predict classes a.png"
    assert form.command(form.config(values_of(form, tile="32")), []) == "diffunet predict classes --tile 32"


def test_samples_of_a_target_are_limited(tmp_path):
    Run(tmp_path).create(PredictionConfig.model_validate({"objective": {"type": "posterior"}}))
    form = PredictForm.of(Run(tmp_path))
    assert {"samples", "steps", "seed"} <= form.settings.keys()
    for key, most in (("samples", 64), ("steps", 1000)):
        form.config(values_of(form, **{key: most}))
        with pytest.raises(
            UserError, match=rf"--{key}: more than the page makes \(got {most + 1}\); use at most {most}"
        ):
            form.config(values_of(form, **{key: most + 1}))
