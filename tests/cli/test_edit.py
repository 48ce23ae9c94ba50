"""The edit command: files in, files out, and mistakes in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import mistake, run, train_small, write_image
from PIL import Image


@pytest.fixture
def edited(small):
    """Return the working directory of one test, with a run and images."""
    train_small("--train.steps", "2")
    for number in range(3):
        write_image(Path("images") / f"{number}.png", "L", (8, 8), seed=number)
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save("mask.png")
    return small


def pixels(path) -> np.ndarray:
    return np.array(Image.open(path))


def records(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_edit_writes_images_of_its_size(edited, capsys):
    def edit(*argv) -> str:
        capsys.readouterr()
        assert run("edit", "run", *argv) == 0
        count, folder = capsys.readouterr().out.strip().splitlines()[-1].split(" images: ")
        assert count == str(len(records(folder)))
        return folder

    folder = edit("images", "--mask", "mask.png", "--samples", "2", "--steps", "4", "--label", "3")
    assert [record["file_name"] for record in records(folder)][:3] == ["0.png", "0_1.png", "1.png"]
    second = records(folder)[1]
    assert Path(second.pop("image")) == Path("images/0.png")
    assert second == {"file_name": "0_1.png", "seed": 1, "label": 3, "label_name": "3"}
    for name in ("0.png", "0_1.png"):
        found, known = pixels(f"{folder}/{name}"), pixels("images/0.png")
        assert (found[:4] == known[:4]).all()
        assert (found[4:] != known[4:]).any()
    assert Image.open(f"{folder}/comparison.png").height > 3 * 32

    write_image(Path("masks") / "1.png", "L", (8, 8)), Image.new("L", (8, 8)).save("masks/0.png")
    folder = edit("images/0.png", "--mask", "masks", "--steps", "3")  # black everywhere: all is kept
    assert (pixels(f"{folder}/0.png") == pixels("images/0.png")).all()

    write_image(Path("small.png"), "L", (4, 4))
    for word in ("{downscale: 2}", "[{downscale: 2}]"):
        folder = edit("small.png", "--degradation", word, "--steps", "4", "--iterations", "1")
        assert pixels(f"{folder}/small.png").shape == (8, 8)
    folder = edit("images/1.png", "--degradation", "{blur: 1}", "--steps", "4", "--rounds", "1", "--sampler", "dpm++")
    assert pixels(f"{folder}/1.png").shape == (8, 8)

    write_image(Path("inner.png"), "L", (6, 5))
    folder = edit("inner.png", "--extend", "[2, 0, 1, 2]", "--steps", "4")
    assert (pixels(f"{folder}/inner.png")[1:6, 2:] == pixels("inner.png")).all()
    wide = edit("images/2.png", "--extend", "[0, 8, 0, 0]", "--steps", "3", "--tile", "8")
    assert (pixels(f"{wide}/2.png")[:, :8] == pixels("images/2.png")).all()
    assert pixels(f"{wide}/2.png").shape == (8, 16)

    assert edit("images/0.png") == "run/edits/007"  # varied by a half
    assert not (pixels("run/edits/007/0.png") == pixels("images/0.png")).all()


@pytest.mark.slow
def test_a_film_begins_and_ends_at_its_images(edited, capsys):
    argv = ("images/0.png", "--between", "images/1.png", "--num_images", "5", "--steps", "20", "--output", "film")
    assert run("edit", "run", *argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("inverted and sampled again, it is off by" in line for line in lines) == 2
    film = Image.open("film/film.gif")
    assert film.n_frames == Image.open("film/film.png").n_frames == 8
    assert len(records("film")) == 5

    assert run("edit", "run", "3", "--between", "4", "--num_images", "2", "--output", "seeds") == 0
    assert run("edit", "run", "4", "--between", "3", "--num_images", "2", "--output", "back") == 0
    assert (pixels("seeds/00000.png") == pixels("back/00001.png")).all()
    assert (pixels("seeds/00000.png") != pixels("seeds/00001.png")).any()


MISTAKES = {
    "--mask no.png": "mask: no.png does not exist; give an image or a folder of images",
    "--mask images --extend [1,1,1,1]": "an edit is one of mask, extend, degradation, strength, between (got mask and",
    "--mask wide.png": "mask: wide.png is of another size than images/0.png (got 8×10); make it 8×8",
    "--degradation {noise: [0, 1]}": "degradation: noise, jpeg and ranges cannot be undone; give fixed steps",
    "--degradation {blur: 1} --iterations 0": "iterations: 0 projects, which a blur does not allow; give at least 1",
    "--mask mask.png --sampler ddim --steps 4": "sampler: ddim does not edit this way; use dpm++, sde-dpm++, ancestral",
    "--mask mask.png --num_images 3": "--num_images: follows from the images; give --samples, the number for each",
    "--between 3": "images: is a folder; give one image or seed at each end",
    "--strength 0": "--strength: ",
    "--extend [0,8,0,0]": "tile: the edit gives an image of 8×16, but the run was trained on 8×8; add --tile 8",
    "--stength 0.5": "--stength: unknown argument; did you mean --strength?",
}


@pytest.mark.slow
def test_mistakes_are_one_line_and_leave_no_files(edited, capsys):
    write_image(Path("wide.png"), "L", (10, 8))
    for words, expected in MISTAKES.items():
        argv = [words.split(" ", 1)[0], words.split(" ", 1)[1]] if words.startswith("--degradation {noise") else None
        if words.startswith("--degradation {blur"):
            argv = ["--degradation", "{blur: 1}", "--iterations", "0"]
        line = mistake(capsys, "edit", "run", "images", *(argv or words.split()))
        assert expected in line, (words, line)
    assert "9.png" in mistake(capsys, "edit", "run", "images/9.png")
    Path("broken.png").write_bytes(b"not an image")
    line = mistake(capsys, "edit", "run", "broken.png")
    assert line == "broken.png: cannot be read (not an image); leave it out"
    line = mistake(capsys, "edit", "run", "images/0.png", "wide.png")
    assert line == "wide.png: another size than images/0.png (got 8×10); edit it alone"
    line = mistake(capsys, "edit", "run", "no", "--between", "4")
    assert line == "no: neither a file nor a seed; give one of them"
    line = mistake(capsys, "edit", "run", "3", "--between", "images/0.png", "--guidance_scale", "2")
    assert line == "guidance_scale: images are inverted without it (got 2.0); use 1"
    assert not Path("run/edits").exists()
