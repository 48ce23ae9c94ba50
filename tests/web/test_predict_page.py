"""The page in a real Chromium, on a folder with a run that predicts and one that samples."""

import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL_PREDICTOR, run, write_image, write_pairs

from diffunet.runs.config import Config
from diffunet.runs.run import Run

pytest.importorskip("selenium")
pytest.importorskip("gradio")
from browser import Browser, page_of, pixels_of, select_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


@pytest.fixture
def home(in_a_new_folder) -> Path:
    """Return a working directory with runs/cells, which predicts objects, and the newer runs/digits."""
    Path("predictor.yaml").write_text(SMALL_PREDICTOR)
    write_pairs(Path("pairs"))
    quick = "--train.steps", 6, "--train.output", "runs/cells", "--data.labels", "instances"
    assert run("train", "--config", "predictor.yaml", *quick) == 0
    Run("runs/digits").create(Config().resolve_model((8, 8), 1))
    return in_a_new_folder


@pytest.fixture
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


def tabs(browser: Browser) -> list[str]:
    return [each.text for each in browser.all("button[role=tab]")]


def test_an_image_is_predicted(browser, home):
    def upload(path: Path) -> None:
        browser.open(address)
        select_run(browser, "cells")
        browser.all("#field-image input[type=file]")[0].send_keys(str(path.absolute()))
        browser.wait(lambda: path.stem in browser.text("#field-image"))
        browser.all("#predict")[0].click()

    with page_of(Path("runs"), home) as address:
        browser.open(address)
        select_run(browser, "digits")
        assert tabs(browser) == ["Sample", "Edit", "Run"]
        select_run(browser, "cells")
        assert tabs(browser) == ["Predict", "Run"]
        browser.all("#predict")[0].click()
        assert browser.message() == "image: no file; upload an image"
        browser.wait(lambda: browser.text("#predict-state .state") == "Nothing was predicted.")

        Path("renamed.png").write_text("#!/bin/sh")
        upload(Path("renamed.png"))
        assert browser.message() == "image: renamed.png cannot be read (not an image); upload an image"

        upload(write_image(Path("a photo.png"), size=(37, 22)))
        browser.wait(lambda: browser.text("#predict-state .state") == "a photo.png, 22×37 pixels")
        browser.all("#predict-download")[0].click()
        file = browser.wait(lambda: list(browser.downloads.glob("*.zip")))[0]
        words = shlex.split(browser.all("#predict-command textarea")[0].get_attribute("value"))
        assert words[:4] == ["diffunet", "predict", "runs/cells", "a photo.png"]
        assert run(*words[1:]) == 0
        folder = Path(words[words.index("--output") + 1])
        with zipfile.ZipFile(file) as archive:
            found = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        assert found == {name: (folder / name).read_bytes() for name in ("a photo.png", "overlays/a photo.png")}

        shares = [float(cell.text.removesuffix("%")) for cell in browser.all(".legend td:last-child")]
        assert sum(shares) == pytest.approx(100, abs=0.11)
        assert [cell.text for cell in browser.all(".legend th")] == ["background", "object"]
        above = browser.all(".layers img")[1]
        assert pixels_of(above.get_attribute("src")).shape == (22, 37, 4)
        objects = pixels_of(browser.all("#prediction figure img")[-1].get_attribute("src"))
        assert np.array_equal(objects.any(-1), pixels_of(above.get_attribute("src"))[..., 3] > 0)
        assert above.value_of_css_property("opacity") == "0.5"
        slider = browser.all(".layers input")[0]
        slider.send_keys("\ue014" * 4)  # right
        browser.wait(lambda: above.value_of_css_property("opacity") == "0.7")

        browser.tab("Run")
        browser.wait(lambda: len(browser.all("figure img[alt^='Preview at step 6']")) == 1)
        assert "step 6 of 6" in browser.text("#training")
        assert "Dice coefficient" in browser.text(".scroll thead")
        errors = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []
