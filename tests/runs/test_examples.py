"""Held-out examples of a run."""

import json

import pytest

from diffunet.conditions.image import ImageConfig
from diffunet.conditions.text import TextConfig
from diffunet.core.errors import UserError
from diffunet.runs.examples import read_examples


def test_examples_refer_to_no_file_outside_of_the_run(tmp_path):
    """A run may come from a stranger: its examples must not read other images."""
    conditions = {"source": ImageConfig(channels=1, bit_depth=8), "caption": TextConfig()}
    for outside in ("../secret.png", str(tmp_path / "secret.png")):
        record = {"file_name": "00000.png", "source": outside, "caption": "../of the sea"}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metadata.jsonl").write_text(json.dumps(record))
        with pytest.raises(UserError, match="damaged .*secret.png is outside of the folder"):
            read_examples(tmp_path / "run", conditions)
    (tmp_path / "run" / "metadata.jsonl").write_text(json.dumps(record | {"source": "source/0.png"}))
    found = read_examples(tmp_path / "run", conditions)
    assert found["source"] == [str(tmp_path / "run" / "source" / "0.png")]
    assert found["caption"] == ["../of the sea"]
