"""The snippets of the documentation, as a reader would run them: page by page, from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/backbone.md"])
def test_every_snippet_runs(page, in_a_new_folder):
    text = (ROOT / page).read_text(encoding="utf-8")
    snippets = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(snippets) >= 2
    session: dict = {}
    for snippet in snippets:
        line = text[: snippet.start()].count("\n") + 1
        code = "\n" * line + snippet[1]                    # so that a traceback names the page's own line
        exec(compile(code, page, "exec"), session)
