import argparse

import pytest
import yaml

from diffunet.runs.config import Config
from diffunet.cli.flags import add_flags, parse_flags
from diffunet.core.settings import settings_from
from diffunet.core.errors import UserError


def read(path, text="", argv=()):
    """The config of a YAML text and command-line flags."""
    path = path / "some.yaml"
    path.write_text(text)
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    _, flags = parse_flags(parser, list(argv))
    return settings_from(path, Config, flags)


def test_values_and_flags(tmp_path):
    text = "train: {learning_rate: 1e-4, steps: 800_000, log_with: null}\nunet:\n  levels: [{channels: 8}]\n"
    config = read(tmp_path, text, ["--train.steps", "5", "--data.path=123", "--data.random_flip", "--train.seed", "3"])
    assert config.train.learning_rate == 1e-4
    assert (config.train.steps, config.train.seed, config.train.log_with) == (5, 3, None)
    assert (config.data.path, config.data.random_flip) == ("123", True)
    assert config.unet.levels[0].channels == 8


def test_flags_take_lists_and_null(tmp_path):
    argv = ["--unet.levels", "[{channels: 8}, {channels: 16, attention: true}]", "--data.resolution", "[8, 12]"]
    config = read(tmp_path, "data: {image_column: img}", [*argv, "--data.image_column", "null"])
    assert [level.attention for level in config.unet.levels] == [False, True]
    assert config.data.size == (8, 12)
    assert config.data.image_column is None


def test_an_empty_file_is_the_defaults(tmp_path):
    assert read(tmp_path) == Config()


def test_the_printed_config_reads_back(tmp_path):
    text = "unet: {levels: [{channels: 8}]}\ndata: {resolution: [8, 12]}\ntrain: {learning_rate: 1e-7}"
    config = read(tmp_path, text)
    assert read(tmp_path, config.to_yaml()) == config
    assert yaml.safe_load(config.to_yaml()).keys() == Config.model_fields.keys()


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}{f', *a{n}' * 8}]\n" for n in range(25))
WRONG = {
    "unknown key": ("train:\n  learing_rate: 1", [], r"some.yaml:2: train.learing_rate: .*mean learning_rate\?"),
    "unknown key in a list": ("unet:\n  levels:\n    - {channels: 8, block: 2}", [], r"some.yaml:3: .*mean blocks\?"),
    "unknown section": ("trian: {}", [], r"some.yaml:1: trian: unknown key; did you mean train\?"),
    "unknown flag": ("", ["--train.learing_rate", "1"], r"--train.learing_rate: .*mean --train.learning_rate\?"),
    "word for a number": ("train:\n\n  steps: many", [], r"some.yaml:3: train.steps: .*integer.*got many"),
    "yes is no number": ("train: {seed: yes}", [], r"some.yaml:1: train.seed: .*integer"),
    "true is no number": ("train: {seed: true}", [], r"some.yaml:1: train.seed: .*integer"),
    "no finite number": ("train: {learning_rate: .nan}", [], r"train.learning_rate: .*finite"),
    "out of range": ("unet: {dropout: 1.5}", [], r"some.yaml:1: unet.dropout: .*less than 1; got 1.5"),
    "flag out of range": ("", ["--unet.dropout", "2"], r"^--unet.dropout: .*less than 1; got 2$"),
    "no such choice": ("diffusion: {prediction_type: eps}", [], r"'epsilon', 'sample' or 'v_prediction'; got eps"),
    "a number for a section": ("train: 5", [], r"some.yaml:1: train: .*got 5"),
    "given twice": ("train: {}\n\ntrain: {}", [], r"some.yaml:3: train: given twice \(first at line 1\)"),
    "no YAML": ("train: [1,\n  2", [], r"some.yaml:\d: not valid YAML"),
    "no keys": ("- 1", [], r"some.yaml:1: expected keys"),
    "a list for a key": ("? [a]\n: 1", [], r"some.yaml:1: not valid YAML"),
    "an endless list": ("train: &a [*a]", [], r"some.yaml:1: train: nested too deeply"),
    "a billion laughs": (LAUGHS, [], r"some.yaml:\d+: more than 100,000 values; are there anchors in anchors\?"),
    "too deep": ("train: " + "[" * 3000, [], r"some.yaml: not valid: nested too deeply"),
    "a tag that does not fit": ("train:\n  steps: !!int many", [], "some.yaml:2: .*cannot be read as int: many"),
    "a tag that runs": ("train: !!python/object/apply:os.system [exit]", [], "some.yaml:1: not valid YAML"),
    "a number of 5000 digits": ("train: {seed: " + "1" * 5000 + "}", [], "some.yaml:1: .*read as int: 111"),
    "control characters": ("train: {}\ndata: {path: \x07}", [], "some.yaml:2: not valid YAML: .*not allowed"),
    "an empty list": ("[]", [], "some.yaml:1: expected keys"),
    "a long value": ("train: {steps: [" + "word, " * 500 + "]}", [], r"train.steps: .{,120}\.\.\.$"),
    "a key of two lines": ('"a\\nb": 1', [], r"some.yaml:1: a\\nb: unknown key"),
    "no section, and a flag": ("train: 5", ["--train.steps", "5"], r"some.yaml:1: train: .*got 5"),
    "a flag too deep": ("", ["--unet.levels", "[" * 3000], r"--unet.levels: not a valid value: \[\["),
    "a preset that is no word": ("unet: {preset: [unet2015]}", [], "some.yaml:1: unet.preset: .*string"),
    "too wide": ("", ["--unet.levels", "[{channels: 1000000000}]"], r"--unet.levels: .*equal to 65536"),
    "too many": ("", ["--sample.num_images", "1000000000000"], r"--sample.num_images: .*equal to 10000000"),
    "no value": ("", ["--train.steps"], r"--train.steps: expected one argument"),
    "impossible together": (
        "diffusion: {prediction_type: epsilon, rescale_betas_zero_snr: true}",
        [],
        r"some.yaml:1: diffusion: rescale_betas_zero_snr .* epsilon",
    ),
}


@pytest.mark.parametrize(("text", "argv", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_told_by_their_place(tmp_path, text, argv, message):
    with pytest.raises(UserError, match=message) as mistake:
        read(tmp_path, text, argv)
    assert len(str(mistake.value).splitlines()) == 1


def test_json_that_was_cut_to_nothing_is_no_defaults(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="config.json:1: expected keys with values, got None"):
        settings_from(tmp_path / "config.json", Config)


def test_all_mistakes_at_once(tmp_path):
    with pytest.raises(UserError) as mistakes:
        read(tmp_path, "train: {steps: 0}\nunet: {dims: 4}", ["--data.workers", "-1"])
    assert len(str(mistakes.value).splitlines()) == 3


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(UserError, match=r"digit.yaml: no such file; did you mean digits.yaml\?"):
        settings_from(tmp_path / "digit.yaml", Config)


def test_help_tells_default_and_range(capsys):
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    text = " ".join(parser.format_help().split())
    assert "Peak learning rate of AdamW. [default: 0.0002; > 0]" in text
    assert "epsilon | sample | v_prediction" in text
    for name, section in Config.model_fields.items():
        for key, field in getattr(section.annotation, "model_fields", {"": section}).items():
            flag = ".".join(filter(None, (name, key)))
            assert f"--{flag} " in text
            assert field.description, f"{flag} has no docstring"
