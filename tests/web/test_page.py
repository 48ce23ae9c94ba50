"""The page in a real Chromium, on runs of digits: one that is trained, and one that trains meanwhile."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from diffunet.conditions.image import ImageConfig
from diffunet.conditions.label import LabelConfig
from diffunet.runs.config import Config
from diffunet.runs.figures import to_pil
from diffunet.runs.run import Run
from diffunet.web.forms import OWN
from diffunet.web.html import data_uri
from stress.program import ROOT, SMALL_RUN, kill_all, program

pytest.importorskip("selenium")
pytest.importorskip("gradio")
from browser import Browser, Visitor, page_of, pixels_of, select_run
from selenium.webdriver import ActionChains, Keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]
HOSTILE = ("<img src=x onerror=document.title='hacked'>", "{{7*7}}", "${document.title='hacked'}")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a working directory with runs/digits, runs/hostile, and a run beside them."""
    home = tmp_path_factory.mktemp("home")
    (home / "small.yaml").write_text(SMALL_RUN)
    train = program(ROOT / "train.py", "--config", "small.yaml", "--train.output", "runs/digits", cwd=home)
    output, _ = train.communicate()
    assert train.returncode == 0, output
    conditions = {
        "label": LabelConfig(num_classes=3, class_names=HOSTILE),
        "source": ImageConfig(by=[{"downscale": 2}], channels=1, bit_depth=8),
    }
    small = Run(home / "runs" / "digits").config()
    config = small.model_copy(update={"conditions": conditions}).resolve_model((8, 8), 1)
    Run(home / "runs" / "hostile").create(config)
    Run(home / "runs" / "hostile").publish(config.build_denoiser())
    Run(home / "secret").create(Config())
    (home / "secret.txt").write_text("hidden words")
    return home


@pytest.fixture(scope="module")
def address(home):
    before = snapshot(home / "runs")
    with page_of(Path("runs"), home) as address:
        yield address
    after = snapshot(home / "runs")
    assert {file: after[file] for file in before} == before  # run folders are only read
    assert all(file.parts[0] == "training" for file in after.keys() - before.keys())


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the time and size of every file in a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return the browser of all tests."""
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(one, address):
    """Return the browser, with the page just opened at the trained run."""
    one.resize(1280, 1000)
    one.driver.get_log("performance")
    one.driver.get_log("browser")
    one.open(address)
    select_run(one, "digits")
    return one


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────


def test_digits_of_a_class_their_files_and_their_command(browser, home, tmp_path):
    browser.choose("label", "7")
    browser.fill("num_images", 5)
    browser.fill("seed", 3)
    browser.sample()
    assert browser.text("#state .state") == "5 images"
    assert [image.get_attribute("alt") for image in browser.all("#images img")] == ["7"] * 5

    browser.all("#download")[0].click()
    file = browser.wait(lambda: list(browser.downloads.glob("*.zip")))[0]
    assert file.name == "digits_seed3.zip"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "page")
    file.unlink()
    records = [json.loads(line) for line in (tmp_path / "page" / "metadata.jsonl").read_text().splitlines()]
    assert [(record["label"], record["seed"]) for record in records] == [(7, seed) for seed in range(3, 8)]

    line = browser.all("#command textarea")[0].get_attribute("value")
    words = shlex.split(line)
    assert words[:2] == ["python", "sample.py"]
    command = [sys.executable, ROOT / "sample.py", *words[2:], "--output", tmp_path / "again"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, shown in enumerate(browser.images()):
        files = [np.array(Image.open(tmp_path / folder / f"{number:05d}.png")) for folder in ("page", "again")]
        assert (files[0] == files[1]).all() and (files[0] == pixels_of(shown)).all()


def test_images_appear_as_they_denoise_and_a_stop_ends_it(browser):
    browser.unfold()
    browser.fill("steps", 1000)
    browser.all("#start")[0].click()
    steps, frames = set(), set()

    def watched() -> bool:
        steps.add(browser.text("#state .state"))
        frames.update(browser.images()[:1])
        return len(frames) >= 3

    browser.wait(watched)
    assert len([step for step in steps if re.fullmatch(r"Step \d+ of 1000", step)]) >= 2
    browser.all("#stop")[0].click()
    browser.wait(lambda: browser.text("#state .state") == "Stopped before any image was complete.")
    browser.wait(lambda: browser.all("#start:not([disabled])"))


def test_a_mistake_is_one_line(browser):
    browser.unfold()
    browser.fill("steps", 1001)
    browser.all("#start")[0].click()
    assert browser.message() == "steps: more than the page makes (got 1001); use at most 1000, or sample.py"
    browser.wait(lambda: browser.text("#state .state") == "Nothing was sampled.")
    browser.wait(lambda: browser.all("#start:not([disabled])"))


def test_ten_users_at_once(address, home):
    """Each gets the images of its own seed, as without the others."""
    seeds = range(0, 1000, 100)

    def sampled(seed: int) -> str:
        visitor = Visitor(address)
        visitor.choose("digits")
        return visitor.sample(num_images=2, seed=seed, label="3")

    with ThreadPoolExecutor(len(seeds)) as pool:
        answers = list(pool.map(sampled, seeds))
    run = Run(home / "runs" / "digits")
    expected = [run.sample(num_images=2, seed=seed, conditions={"label": 3}).pixels for seed in seeds]
    for user, answer in enumerate(answers):
        for other, pixels in enumerate(expected):
            shown = [data_uri(to_pil(image, 8)) in answer for image in pixels]
            assert shown == [user == other] * 2


# ── editing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_is_edited_where_the_mouse_paints(browser, home, tmp_path):
    """The pixels that are not painted come back as they were; the command line makes the same ones."""
    browser.fill("num_images", 2)
    browser.sample()
    browser.all("#images button[data-index='1']")[0].click()
    browser.wait(lambda: browser.all("#images button[data-index='1'][aria-pressed=true]"))
    chosen = pixels_of(browser.images()[1])
    browser.tab("Edit")
    browser.all("#take")[0].click()
    browser.wait(lambda: browser.all("#before img"))
    assert (pixels_of(browser.all("#before img")[0].get_attribute("src")) == chosen).all()

    canvas = browser.wait(lambda: browser.all("#editor canvas"))[0]
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    mouse = ActionChains(browser.driver).move_to_element_with_offset(canvas, -60, 60).click_and_hold()
    for _ in range(6):
        mouse = mouse.move_by_offset(20, 0)
    mouse.release().perform()

    def edited() -> list[np.ndarray]:
        browser.all("#edit")[0].click()
        browser.wait(lambda: browser.text("#edit-state .state") == "2 images" or browser.text(".toast-body"))
        assert not browser.text(".toast-body")
        return [pixels_of(image.get_attribute("src")) for image in browser.all("#after img")]

    images = edited()
    changed = [image != chosen for image in images]
    assert len(changed) == 2
    for where in changed:
        assert 2 <= where.sum() <= 20  # a stroke of a few of the 64 pixels
        assert not where[:4].any()  # the upper half was not painted

    browser.all("#edit-download")[0].click()
    file = browser.wait(lambda: list(browser.downloads.glob("*.zip")))[0]
    with zipfile.ZipFile(file) as archive:
        archive.extractall(home)
    file.unlink()
    words = shlex.split(browser.all("#edit-command textarea")[0].get_attribute("value"))
    assert words[:4] == ["diffunet", "edit", "runs/digits", "inputs/image.png"]
    command = [sys.executable, "-m", "diffunet", *words[1:], "--output", tmp_path / "again"]
    done = subprocess.run(command, cwd=home, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, image in zip(("image.png", "image_1.png"), images, strict=True):
        assert (np.array(Image.open(tmp_path / "again" / name)) == image).all()


def test_an_upload_is_varied_by_the_strength(browser, tmp_path):
    browser.fill("num_images", 1)
    original = np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))
    Image.fromarray(original).save(tmp_path / "squares.png")
    browser.tab("Edit")
    browser.all("#edit")[0].click()
    assert browser.message() == "image: none to edit; upload one, or take a sample"
    browser.all("input[data-testid='Upload an image-upload-button']")[0].send_keys(str(tmp_path / "squares.png"))
    before = browser.wait(lambda: browser.all("#before img"))[0].get_attribute("src")
    assert (pixels_of(before) == original).all()
    browser.all("#edit")[0].click()
    browser.wait(lambda: browser.text("#edit-state .state") == "1 image")
    after = pixels_of(browser.all("#after img")[0].get_attribute("src"))
    assert after.shape == original.shape and (after != original).any()


# ── following ─────────────────────────────────────────────────────────────────────────────────────


def test_a_training_meanwhile(browser, address, home):
    flags = "--train.output", "runs/training", "--train.steps", "100000", "--train.log_every", "1"
    training = program(ROOT / "train.py", "--config", "small.yaml", *flags, cwd=home)
    try:
        browser.wait(lambda: (home / "runs" / "training" / "log.jsonl").exists())
        browser.open(address)
        select_run(browser, "training")
        browser.tab("Run")
        seen = set()

        def followed() -> bool:
            seen.update(re.findall(r"step ([\d,]+) of 100,000 · loss", browser.text("#training")))
            return len(seen) >= 3

        browser.wait(followed)
        curves = {image.get_attribute("src") for image in browser.all("figure img")}
        browser.wait(lambda: {image.get_attribute("src") for image in browser.all("figure img")} - curves)
    finally:
        kill_all(training, signal.SIGKILL)
        training.communicate()


# ── hostile visitors, hostile runs ────────────────────────────────────────────────────────────────


def test_files_that_are_no_images(browser, tmp_path):
    select_run(browser, "hostile")
    browser.choose("source", "your image")
    chosen = browser.wait(lambda: browser.all("#field-source-0 input[type=file]"))[0]
    (tmp_path / "renamed.png").write_text("#!/bin/sh")
    chosen.send_keys(str(tmp_path / "renamed.png"))
    browser.wait(lambda: "renamed" in browser.text("#field-source-0"))
    browser.all("#start")[0].click()
    assert browser.message() == "source: renamed.png cannot be read (not an image); upload an image"


def test_a_huge_upload(address):
    with httpx.Client(base_url=address) as client:
        answer = client.post("gradio_api/upload", files={"files": ("a.png", bytes(21 * 2**20))})
        assert answer.status_code == 413
        answer = client.post("gradio_api/upload", files={"files": ("a.png", bytes(40 * 2**20))})
        assert answer.status_code == 413


def test_path_tricks(address, home, browser):
    secret, config = home / "secret.txt", home / "runs" / "digits" / "config.yaml"
    paths = [secret, config, "runs/digits/config.yaml", "../secret.txt", "/etc/passwd", f"{home}/runs/../secret.txt"]
    tricks = [
        str(path).replace("/", slash).replace("..", dots)
        for path in paths
        for slash in ("/", "%2f", "//")
        for dots in ("..", "%2e%2e")
    ]
    with httpx.Client(base_url=address) as client:
        cache = client.post("gradio_api/upload", files={"files": ("../../a.png", b"mine")}).json()[0]
        assert client.get(f"gradio_api/file={cache}").content == b"mine"
        tricks += [f"{cache}/../../../secret.txt", f"{Path(cache).parent}", str(Path(cache).parent.parent)]
        for route in (
            "gradio_api/file=",
            "file=",
            "static/",
            "assets/",
            "gradio_api/file/",
            "gradio_api/proxy=",
            "custom_component/",
        ):
            for path in tricks:
                answer = client.get(f"{route}{path}")
                assert (
                    b"hidden words" not in answer.content
                    and b"objective" not in answer.content
                    and b"root:" not in answer.content
                )
                assert answer.status_code >= 400 or "text/html" in answer.headers["content-type"], (route, path)


@pytest.mark.parametrize(
    "name", ["../secret", "{home}/secret", "secret", "", None, 7, ["digits"], {"path": "/etc/passwd"}]
)
def test_forged_runs(address, home, name):
    """What the page would never send: a run that is not listed."""
    visitor = Visitor(address)
    answer = visitor.choose(name.format(home=home) if isinstance(name, str) else name)
    assert "process_completed" in answer
    assert "field-seed" not in answer


def test_forged_files(address, home):
    """A file that was not uploaded, instead of one that was."""
    visitor = Visitor(address)
    visitor.choose("hostile")
    for path in (home / "secret.txt", home / "runs" / "digits" / "samples" / "strip.png", "http://127.0.0.1:1/a.png"):
        file = {"path": str(path), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        answer = visitor.sample(**{"source": OWN, "source-0": file, "num_images": 1})
        assert "images" not in answer or "data:image" not in answer
        assert '"success": false' in answer or '"success":false' in answer


def test_names_in_a_run_are_only_text(browser):
    select_run(browser, "hostile")
    browser.choose("source", "none")
    browser.fill("num_images", 3)
    browser.sample()
    assert [label.text for label in browser.all("#field-label label")][1:4] == [*HOSTILE]
    assert [image.get_attribute("alt") for image in browser.all("#images img")] == [*HOSTILE]
    assert browser.driver.title == "diffunet"


def test_nothing_comes_from_elsewhere(browser, address):
    browser.sample()
    browser.tab("Run")
    browser.wait(lambda: browser.all("figure img"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    errors = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


# ── keyboard, small screens ───────────────────────────────────────────────────────────────────────


def test_the_keyboard_alone(browser):
    def press(*keys: str) -> None:
        ActionChains(browser.driver).send_keys(*keys).perform()

    def tab_to(selector: str) -> None:
        script = "return document.activeElement?.matches(arguments[0])"
        for _ in range(60):
            if browser.driver.execute_script(script, selector):
                return
            press(Keys.TAB)
        pytest.fail(f"{selector} cannot be reached by Tab")

    tab_to("#field-label input[value='0']")
    press(Keys.SPACE)
    tab_to("#start")
    press(Keys.ENTER)
    browser.wait(lambda: browser.text("#state .state") == "4 images")
    assert [image.get_attribute("alt") for image in browser.all("#images img")] == ["0"] * 4
    tab_to("#images button[data-index='1']")
    press(Keys.SPACE)
    browser.wait(lambda: browser.all("#images button[data-index='1'][aria-pressed=true]"))
    assert len(browser.all("#images button[aria-pressed=true]")) == 1


def test_a_small_screen(browser, address):
    browser.resize(390, 844)
    browser.open(address)
    select_run(browser, "digits")
    browser.sample()
    for name, part in (("Sample", "#images img"), ("Edit", "#editor"), ("Run", "figure img")):
        browser.tab(name)
        browser.wait(lambda part=part: browser.all(part))
        width = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert width == 390, name
