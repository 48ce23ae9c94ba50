"""Predictions of image files: names, sizes, values, tiles, ensembles, and what is skipped."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PEAK_MEMORY, mistake, run, write_pairs
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.data.labels import read_codes
from diffunet.data.pair_files import read_image
from diffunet.data.pairs import Source
from diffunet.evaluation.instances import segments_of, watershed_segments
from diffunet.runs.painting import COLORS, overlay, paint_numbers
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.predicted_files import inputs_of
from diffunet.runs.predicted_images import save_objects
from diffunet.runs.prediction import PredictConfig, PredictionConfig, load_predictor
from diffunet.runs.run import Run
from stress.program import program

QUICK = ["--train.steps", 2, "--train.gradient_accumulation_steps", 1]


def train(*flags) -> None:
    assert run("train", "--config", "predictor.yaml", *QUICK, *flags) == 0


def predicted(*words) -> dict[str, Path]:
    """Predict, and return the files in the folder `out` by name."""
    assert run("predict", *words, "--output", "out") == 0
    return {str(path.relative_to("out")): path for path in Path("out").rglob("*") if path.is_file()}


def image_of(path: str) -> torch.Tensor:
    return read_image([Source(path)], 1)


@pytest.fixture
def trained(small_predictor):
    """Return the working directory, with the run `run`."""
    train()
    return small_predictor


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def test_predictions_have_the_names_sizes_and_values_of_the_training(trained, capsys):
    Image.open("pairs/images/a0.png").resize((35, 17)).convert("RGB").save("photo.tif")
    files = predicted("run", "pairs/images", "photo.tif", "--probabilities", "--overlays")
    names = [f"a{index}" for index in range(8)] + ["photo"]
    kinds = ("{}.png", "{}.probabilities.npy", "overlays/{}.png")
    assert files.keys() == {kind.format(name) for name in names for kind in kinds}
    assert "9 predictions: out" in capsys.readouterr().out
    predictor = load_predictor(Run("run")).tiled(16)
    for name, path in (("a3", "pairs/images/a3.png"), ("photo", "photo.tif")):
        expected = torch.softmax(predictor(image_of(path)[None]), 1)[0]
        assert np.allclose(np.load(files[f"{name}.probabilities.npy"]), expected, atol=1e-3)
        classes = read_codes(Source(str(files[f"{name}.png"])))
        assert classes.shape == ((24, 20) if name == "a3" else (17, 35))
        assert np.array_equal(classes, 255 * expected.argmax(0).numpy())
        assert Image.open(files[f"overlays/{name}.png"]).size == classes.shape[::-1]
    assert np.load(files["a0.probabilities.npy"]).dtype == np.float16


@pytest.mark.parametrize("kind", ["palette", "colors"])
def test_the_values_of_the_targets_are_written(small_predictor, kind):
    colors = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}
    write_pairs(Path("pairs"), (0, 1, 2))
    for path in Path("pairs/labels").iterdir():
        classes = np.asarray(Image.open(path))
        if kind == "palette":
            image = Image.fromarray(classes, mode="P")
            image.putpalette([value for color in colors.values() for value in color])
            image.save(path)
        else:
            Image.fromarray(np.asarray(list(colors.values()), np.uint8)[classes]).save(path)
    read = {code for path in Path("pairs/labels").iterdir() for code in np.unique(read_codes(Source(str(path))))}
    train()
    files = predicted("run", "pairs/images")
    assert {code for path in files.values() for code in np.unique(read_codes(Source(str(path))))} <= read
    assert Image.open(files["a0.png"]).mode == ("RGB" if kind == "colors" else "L")


def test_numbers_are_written_in_the_units_of_the_targets(small_predictor):
    train("--objective", "regression")
    files = predicted("run", "pairs/images/a1.png")
    expected = load_predictor(Run("run")).tiled(16)(image_of("pairs/images/a1.png")[None])[0]
    assert files.keys() == {"a1.npy"}
    assert np.allclose(np.load(files["a1.npy"]), expected, atol=1e-3)
    assert expected.min() > -200
    assert expected.max() > 20  # of targets 0 and 255


def test_a_broken_image_is_skipped_and_reported(trained, capsys):
    Path("pairs/images/a4.png").write_bytes(b"broken")
    np.save("pairs/images/a9.npy", np.zeros((5, 8, 9), np.uint8))
    assert predicted("run", "pairs/images").keys() == {f"a{index}.png" for index in (0, 1, 2, 3, 5, 6, 7)}
    output = capsys.readouterr().out
    assert "skipped a4: pairs/images/a4.png: not an image" in output
    assert "skipped a9: pairs/images/a9.npy: 5 channels (expected 1)" in output
    assert "7 predictions: out" in output
    assert run("predict", "run", "pairs/images/a4.png") == 2


def test_pages_of_a_stack_are_images(trained):
    pages = [Image.open(f"pairs/images/a{index}.png") for index in range(3)]
    pages[0].save("stack.tif", save_all=True, append_images=pages[1:])
    files = predicted("run", "stack.tif", "pairs/images/a2.png")
    assert files.keys() == {"stack_0000.png", "stack_0001.png", "stack_0002.png", "a2.png"}
    assert files["stack_0002.png"].read_bytes() == files["a2.png"].read_bytes()


def test_an_image_of_several_files(small_predictor):
    for index in range(8):
        image = Path(f"pairs/images/a{index}.png")
        for channel in (0, 1):
            image.with_name(f"a{index}_{channel:04d}.png").write_bytes(image.read_bytes())
        image.unlink()
    train()
    assert Run("run").config(PredictionConfig).data.channels == 2
    assert predicted("run", "pairs/images").keys() == {f"a{index}.png" for index in range(8)}


# ── several predictions of an image ───────────────────────────────────────────────────────────────


def test_two_runs_give_their_mean_and_deviation(trained):
    train("--train.seed", 1, "--train.output", "other")
    files = predicted("run", "other", "pairs/images/a0.png", "--probabilities")
    assert files.keys() == {"a0.png", "a0.probabilities.npy", "a0.std.npy"}
    image = image_of("pairs/images/a0.png")
    one, two = (ImagePredictor([Run(name)])(image).mean for name in ("run", "other"))
    assert np.allclose(np.load(files["a0.probabilities.npy"]), (one + two) / 2, atol=1e-3)
    std = np.load(files["a0.std.npy"])
    assert std.shape == (24, 20)
    assert np.allclose(std, ((one - two).abs() / 2).mean(0), atol=1e-6)


def test_the_deviation_of_numbers_has_their_channels(small_predictor):
    for path in list(Path("pairs/labels").iterdir()):
        target = np.asarray(Image.open(path), np.float32)
        np.save(path.with_suffix(".npy"), np.stack([target, target + 1]))
        path.unlink()
    train("--objective", "regression")
    train("--objective", "regression", "--train.seed", 1, "--train.output", "other")
    files = predicted("run", "other", "pairs/images/a0.png")
    assert np.load(files["a0.npy"]).shape == np.load(files["a0.std.npy"]).shape == (2, 24, 20)


def test_averaged_views_make_the_prediction_symmetric(trained):
    predictor = ImagePredictor([Run("run")], PredictConfig(average=True))
    image = image_of("pairs/images/a0.png")[:, :16, :16]
    found = predictor(image).mean
    torch.testing.assert_close(predictor(image.flip(-1)).mean, found.flip(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor(image.mT).mean, found.mT, rtol=1e-4, atol=1e-5)


def test_any_tile_of_a_valid_network_gives_the_same(small_predictor):
    """To float rounding, if no norm takes its statistics from a tile."""
    train("--unet.padding", "valid", "--unet.block", "plain", "--unet.norm", "none", "--data.patch", 43)
    image = image_of("pairs/images/a0.png")
    whole, tiled = (ImagePredictor([Run("run")], PredictConfig(tile=side))(image).mean for side in (67, 33))
    torch.testing.assert_close(whole, tiled, rtol=1e-4, atol=1e-5)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def test_words_that_are_no_runs_or_images(trained, capsys):
    assert "nowhere: no such run folder" in mistake(capsys, "predict", "nowhere", "pairs/images")
    assert "pairs: no config.yaml, so not a run folder" in mistake(capsys, "predict", "pairs", "run")
    assert "run: a run; add images to predict" in mistake(capsys, "predict", "run")
    assert "runs come first, and images after them" in mistake(capsys, "predict", "run", "pairs/images", "run")
    line = mistake(capsys, "predict", "run", "pairs/image")
    assert line == "pairs/image: no such file or folder; did you mean images?"
    Path("empty").mkdir()
    assert "empty: contains no images" in mistake(capsys, "predict", "run", "empty")
    line = mistake(capsys, "predict", "run", "pairs/images/a0.png", "pairs/labels/a0.png")
    assert line == "pairs/labels/a0.png: a0 is already the name of pairs/images/a0.png; rename one"
    assert "--tile: some level would not halve 17 evenly; use 16 or 18" in mistake(
        capsys, "predict", "run", "pairs/images", "--tile", 17
    )
    assert not Path("run/predictions").exists()


def test_runs_that_do_not_belong_together(trained, capsys):
    train("--objective", "regression", "--train.output", "other")
    line = mistake(capsys, "predict", "run", "other", "pairs/images")
    assert line.startswith("other: ")
    (Path("run/model") / "diffusion_pytorch_model.safetensors").unlink()
    assert "missing; the run has no checkpoint yet" in mistake(capsys, "predict", "run", "pairs/images")


def test_names_of_inputs_are_in_natural_order(in_a_new_folder):
    for name in ("a10", "a2"):
        Image.new("L", (3, 3)).save(f"{name}.png")
    assert list(inputs_of(["a10.png", "a2.png"], 1)) == ["a2", "a10"]
    for name in ("b_0000", "b_0001"):
        Image.new("L", (3, 3)).save(f"{name}.png")
    assert list(inputs_of(["."], 1)) == ["a2", "a10", "b_0000", "b_0001"]
    assert [len(sources) for sources in inputs_of(["."], 2).values()] == [1, 1, 2]


def test_an_image_of_other_channels_is_a_mistake(trained):
    with pytest.raises(UserError, match="the image has 3 channels, and the run was trained on 1"):
        ImagePredictor([Run("run")])(torch.zeros(3, 8, 8))


def test_objects_are_written_with_a_number_each(tmp_path):
    classes = torch.zeros(12, 300, dtype=torch.int64)
    classes[1:11, 1::2] = 1  # 150 lines
    save_objects(tmp_path / "few.png", segments_of(classes[:, :7]))
    written = np.asarray(Image.open(tmp_path / "few.png"))
    assert written.dtype == np.uint8
    assert [sorted(set(written[:, column].tolist())) for column in range(4)] == [[0], [0, 1], [0], [0, 2]]
    save_objects(tmp_path / "many.png", segments_of(torch.cat([classes, classes], 1)))
    assert np.asarray(Image.open(tmp_path / "many.png")).max() == 300  # 16 bits
    with pytest.raises(UserError, match="67,600 objects do not fit into 16 bits"):
        save_objects(tmp_path / "most.png", np.arange(67_601).reshape(1, -1))


def test_a_watershed_divides_objects_at_weak_bridges(trained):
    probability = torch.full((9, 21), 0.1)
    probability[2:7, 2:19] = 0.95
    probability[:, 10] = probability[:, 10].clamp(max=0.6)  # a bridge
    classes = (probability > 0.5).long()
    joined, divided = (
        ImagePredictor([Run("run")], PredictConfig(watershed=above)).objects(classes, probability)
        for above in (None, 0.9)
    )
    assert np.array_equal(joined, classes)
    assert np.array_equal(divided > 0, joined > 0)  # the bridge goes to one of both
    assert (divided[4, 2:10] == divided[4, 2]).all() and (divided[4, 11:19] == divided[4, 11]).all()
    assert divided[4, 2] != divided[4, 18] and divided.max() == 2


def test_the_objects_of_a_prediction(trained):
    files = predicted("run", "pairs/images", "--objects", "--watershed", 0.55, "--probabilities")
    assert files.keys() >= {f"objects/a{index}.png" for index in range(8)}
    for index in range(8):
        second = np.load(files[f"a{index}.probabilities.npy"])[1]
        objects, classes = (np.asarray(Image.open(files[f"{way}a{index}.png"])) for way in ("objects/", ""))
        assert np.array_equal(objects > 0, classes > 0)
        assert np.array_equal(objects, watershed_segments(classes > 0, -second.astype(np.float32), -0.55))
    assert Image.open(files["a0.png"]).size == Image.open(files["objects/a0.png"]).size


def test_an_overlay_colors_objects_and_leaves_the_background():
    image = torch.arange(20 * 30).reshape(1, 20, 30)
    objects = torch.zeros(20, 30, dtype=torch.int64)
    objects[5:15, 2:26] = 1 + torch.arange(24) // 2  # 12 objects
    gray, painted = paint_numbers(image), overlay(image, objects, COLORS)
    assert torch.equal(painted[:, objects == 0], gray[:, objects == 0])
    for number in range(1, 13):
        color = torch.tensor(COLORS[(number - 1) % 7 + 1], dtype=torch.uint8)[:, None]
        expected = (gray[:, objects == number].int() + color) // 2
        assert torch.equal(painted[:, objects == number].int(), expected)


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["segmentation", "regression"])
def test_strips_give_the_same_files(trained, monkeypatch, kind):
    train("--objective", kind, "--overwrite")
    words = "run", "pairs/images", "--average", *(["--probabilities", "--objects"] if kind == "segmentation" else [])
    whole = {name: path.read_bytes() for name, path in predicted(*words).items()}
    monkeypatch.setattr("diffunet.runs.predict.STRIP_BYTES", 5000)  # 5 rows of 24 x 20
    seen = []
    strips = ImagePredictor.strips
    monkeypatch.setattr(
        ImagePredictor, "strips", lambda *args: (seen.append(rows) or (rows, part) for rows, part in strips(*args))
    )
    shutil.rmtree("out")
    parts = predicted(*words)
    assert len(seen) > 8 * 2
    assert parts.keys() == whole.keys()
    for name, path in parts.items():
        if name.endswith("std.npy"):  # a mean over classes, whose order of summation depends on the layout
            np.testing.assert_allclose(np.load(path), np.load(io.BytesIO(whole[name])), rtol=1e-5, atol=1e-6)
        else:
            assert path.read_bytes() == whole[name]


MEMORY = """
import sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from diffunet.runs import predict, predicted_files
from diffunet.runs.prediction import PredictConfig
from diffunet.runs.run import Run

predict.STRIP_BYTES = 2**24
predictor = predict.ImagePredictor([Run("run")], PredictConfig(tile=256))
torch.set_num_threads(1)
before = peak_memory()
predicted_files.predict_files(predictor, predicted_files.inputs_of([sys.argv[1]], 1), Path("out"))
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.slow
def test_the_memory_of_a_prediction_does_not_grow_with_the_image(trained):
    def memory(height: int) -> int:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, 1000), np.uint8)).save(f"{height}.png")
        return int(program("-c", PEAK_MEMORY + MEMORY, f"{height}.png").communicate()[0].splitlines()[-1])

    growth = (memory(8000) - memory(2000)) / (6000 * 1000)
    assert growth < 8  # bytes of the image, its classes and the probability of one; whole predictions have 50
