"""The page: from a click on Sample to the first image on the screen and to the finished ones, in a real Chromium.

    python benchmarks/speed/page.py RUN --clicks 6             RUN: such as runs/digits; needs chromium and its driver

The first click loads the network; the others find it in memory. Times are taken inside the browser.
"""

import argparse
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from report import add_record_flag, append_rows, header, table

ROOT = Path(__file__).parent.parent.parent
WATCH = """
window.first = null;
document.querySelector('#start').addEventListener('click', () => { window.clicked = performance.now(); }, {once: true});
new MutationObserver((changes, watcher) => {
  if (!window.clicked || !document.querySelector('#images img')) return;
  window.first = performance.now() - window.clicked;
  watcher.disconnect();
}).observe(document.body, {childList: true, subtree: true, attributes: true});
"""


def measure(browser, address: str) -> tuple[float, float]:
    """Return the seconds until the first image and until all of them, on a page that is loaded anew."""
    browser.open(address)
    browser.wait(lambda: browser.all("#start:not([disabled])"))
    browser.driver.execute_script(f"window.clicked = null; {WATCH}")
    browser.sample()
    first, whole = browser.driver.execute_script("return [window.first, performance.now() - window.clicked]")
    return first / 1000, whole / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clicks", type=int, default=6)
    add_record_flag(parser)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    from browser import Browser, page_of

    with TemporaryDirectory() as folder, page_of(args.run.resolve(), Path(folder)) as address:
        browser = Browser(Path(folder))
        try:
            seconds = [measure(browser, address) for _ in range(args.clicks)]
        finally:
            browser.driver.quit()
    rows = [{"click": number, "first": first, "all": whole} for number, (first, whole) in enumerate(seconds, 1)]
    later = [statistics.median(column) for column in zip(*seconds[1:], strict=True)]
    lines = [["first", *(f"{each:.2f}" for each in seconds[0])], ["later, median", *(f"{each:.2f}" for each in later)]]
    print(f"{header(torch.device('cpu'))}\n\n{table(['click', 'seconds to the first image', 'to all images'], lines)}")
    if args.record:
        append_rows("page", rows)


if __name__ == "__main__":
    main()
