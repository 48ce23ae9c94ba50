"""The page in a real Chromium and what a visitor does there; visitors without a browser, by the protocol of gradio."""

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from stress.program import program

SECONDS = 120
"""How long to wait for anything."""
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio")


@contextmanager
def page_of(folder: Path, cwd: Path) -> Iterator[str]:
    """Start `diffunet app` on a folder as a user does. Yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = program("-m", "diffunet", "app", folder, "--port", str(port), cwd=cwd)
    try:
        line = process.stdout.readline()
        assert "Ctrl-C stops it" in line, line + process.stdout.read()
        yield line.split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # prints what its threads do
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    last_lines = re.findall(r"^Traceback.*\n(?:  .*\n)+(.*)", output, re.MULTILINE)
    forged = "gradio.exceptions.", "ValueError: Hostname 127.0.0.1 failed validation"
    left = "starlette.requests.ClientDisconnect"  # a browser that closes during an upload
    assert all(line.startswith((*forged, left)) for line in last_lines), output


class Browser:
    """A headless Chromium."""

    def __init__(self, downloads: Path):
        found, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
        if not (found and driver):
            pytest.skip("no Chromium: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = found
        for option in OPTIONS:
            options.add_argument(option)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(driver)
        self.downloads = downloads
        self.driver = webdriver.Chrome(options, service)
        self.resize(1280, 1000)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str) -> None:
        """Load the page, until its form is there."""
        self.driver.get(address)
        self.wait(lambda: self.all("#start, #predict"))

    def wait(self, condition):
        """Return the first true value of a condition."""
        return WebDriverWait(self.driver, SECONDS, 0.1).until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that are there."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text of an element; an empty one if it is not there, or just replaced."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, selector)

    def choose(self, name: str, shown: str) -> None:
        """Click a choice of a condition."""
        labels = [each for each in self.all(f"#field-{name} label") if each.text.strip() == shown]
        labels[0].click()

    def fill(self, name: str, value: object) -> None:
        """Type into the field of a setting."""
        field = self.all(f"#field-{name} input, #field-{name} textarea")[0]
        field.clear()
        field.send_keys(str(value), "\t")

    def unfold(self) -> None:
        """Show the settings of the sampler."""
        self.all("#sampler button")[0].click()
        self.wait(lambda: any(field.is_displayed() for field in self.all("#field-steps input")))

    def tab(self, name: str) -> None:
        """Open a tab."""
        next(each for each in self.all("button[role=tab]") if each.text == name).click()

    def sample(self) -> None:
        """Sample, until the images are complete."""
        self.wait(lambda: self.all("#start:not([disabled])"))
        self.all("#start")[0].click()
        self.wait(lambda: re.search(r"^(\d+ images?$|Stopped)", self.text("#state .state")))

    def message(self) -> str:
        """Return the text of the message that appears, without its title."""
        return self.wait(lambda: self.text(".toast-body")).splitlines()[-1]

    def images(self) -> list[str]:
        """Return the addresses of the images."""
        return [image.get_attribute("src") for image in self.all("#images img")]


class Visitor:
    """One of many who use the page at once: what a browser sends, without a browser."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=address, timeout=SECONDS)
        self.session = uuid.uuid4().hex
        self.form: dict = {}

    def call(self, function: int, data: list) -> str:
        """Call a function of the page, and return all that the server sends, as JSON on lines."""
        event = {"data": data, "fn_index": function, "session_hash": self.session}
        self.client.post("gradio_api/queue/join", json=event)
        with self.client.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as answer:
            lines = [line.removeprefix("data:") for line in answer.iter_lines() if line.startswith("data:")]
        return "\n".join(lines)

    def choose(self, run: object) -> str:
        """Choose a run by name, and return what the server sends."""
        dependencies = self.client.get("config").json()["dependencies"]
        show = next(each for each in dependencies if len(each["inputs"]) == 1)
        text = self.call(show["id"], [run])
        outputs = (json.loads(line).get("output") or {} for line in text.splitlines())
        self.form = next((output["render_config"] for output in outputs if output.get("render_config")), {})
        return text

    def sample(self, **values: object) -> str:
        """Sample with some values of settings and conditions, and return what the server sends."""
        components = {each["id"]: each["props"] for each in self.form["components"]}
        images = next(number for number, props in components.items() if props.get("elem_id") == "images")
        found = (each for each in self.form["dependencies"] if images in each["outputs"] and len(each["inputs"]) > 1)
        function = next(found)
        data: list = [None]  # the state
        for number in function["inputs"][1:]:
            props = components[number]
            data.append(values.get(props["elem_id"].removeprefix("field-"), props.get("value")))
        return self.call(function["id"], data)


def select_run(browser: Browser, name: str) -> None:
    """Choose a run, until its form is there."""
    if browser.text("#run-name") != name:
        browser.all("#run input")[0].click()
        browser.wait(lambda: browser.all(f"#run li[aria-label='{name}']"))[0].click()
        browser.wait(lambda: browser.text("#run-name") == name)
        browser.wait(lambda: any(each.is_displayed() for each in browser.all("#start, #predict")))


def pixels_of(address: str) -> np.ndarray:
    """Return the pixels of a PNG inside an address."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
