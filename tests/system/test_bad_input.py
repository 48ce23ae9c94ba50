"""Random bad input: one line for each mistake, which begins with its place, and no traceback."""

import argparse
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffunet.cli.flags import add_flags, parse_flags
from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.runs.config import CONFIG_DIR, Config
from stress.cases import keys_of, with_value
from stress.program import ROOT, program

often = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(CONFIG_DIR.glob("*.yaml"))}
KEYS = keys_of(Config)
PARSER = argparse.ArgumentParser()
add_flags(PARSER, Config)
words = st.text(max_size=20) | st.sampled_from([*KEYS, *"{}[]&*!|>%@`\"'#:-~", "1e400", "0x1f", ".nan", "<<"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates() | st.binary(max_size=4)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4))


def check_config(file: Path, argv: list[str] = ()) -> None:
    """Fail unless the config is valid, or each line of the error begins with the place of its mistake."""
    try:
        _, flags = parse_flags(PARSER, list(argv))
        config = settings_from(file, Config, flags)
    except UserError as mistake:
        lines = re.split(r"[\r\n\x85\u2028]", str(mistake))
        assert all(re.match(r"some\.yaml(:\d+)?: |--|.*: unknown argument", line) for line in lines), lines
    else:
        assert yaml.safe_load(config.to_yaml())


@often
@given(values)
def test_any_values(in_a_new_folder, values):
    Path("some.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.sampled_from(KEYS), values)
def test_any_value_for_any_key(in_a_new_folder, key, value):
    nested = with_value({}, Config, key, value)
    Path("some.yaml").write_text(yaml.safe_dump(nested, allow_unicode=True), encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.sampled_from(list(TEXTS)), st.data())
def test_any_change_to_the_shipped_configs(in_a_new_folder, name, data):
    text = TEXTS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(words) + text[stop:]
    Path("some.yaml").write_text(text, encoding="utf-8")
    check_config(Path("some.yaml"))


@often
@given(st.binary(max_size=200))
def test_any_bytes(in_a_new_folder, data):
    Path("some.yaml").write_bytes(data)
    check_config(Path("some.yaml"))


@often
@given(st.lists(st.tuples(st.sampled_from(KEYS), words | values.map(repr)), max_size=4), st.lists(words, max_size=2))
def test_any_command_line(in_a_new_folder, flags, others):
    Path("some.yaml").touch()
    argv = [part for key, word in flags for part in (f"--{key}", word)] + others
    if not {"-h", "--help"} & {*argv}:
        check_config(Path("some.yaml"), argv)


@pytest.mark.slow
def test_stress_test_of_inputs_in_short_form():
    process = program("-m", "stress.inputs", "--cases", "40", cwd=ROOT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
