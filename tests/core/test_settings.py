import argparse
import re

import pytest
import yaml

from diffunet.cli.flags import add_flags, parse_flags
from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.settings import (
    Settings,
    docstrings_of,
    fields_of,
    mapping_of,
    section_of,
    settings_from,
    variants_of,
)
from diffunet.objectives.ddpm import DDPMConfig
from diffunet.objectives.edm import EDMConfig
from diffunet.runs.config import Config
from diffunet.training.config import TrainConfig


def read(path, text="", argv=()):
    """Return the config of a YAML text and command-line flags."""
    path = path / "some.yaml"
    path.write_text(text)
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    _, flags = parse_flags(parser, list(argv))
    return settings_from(path, Config, flags)


def test_flags_override_values_of_the_file(tmp_path):
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


def test_an_empty_file_means_the_defaults(tmp_path):
    assert read(tmp_path) == Config()


def test_a_dumped_config_reads_back(tmp_path):
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
    "yes for a number": ("train: {seed: yes}", [], r"some.yaml:1: train.seed: .*integer"),
    "true for a number": ("train: {seed: true}", [], r"some.yaml:1: train.seed: .*integer"),
    "not a finite number": ("train: {learning_rate: .nan}", [], r"train.learning_rate: .*finite"),
    "out of range": ("unet: {dropout: 1.5}", [], r"some.yaml:1: unet.dropout: .*less than 1; got 1.5"),
    "flag out of range": ("", ["--unet.dropout", "2"], r"^--unet.dropout: .*less than 1; got 2$"),
    "not one of the choices": (
        "objective: {type: ddpm, prediction_type: eps}",
        [],
        r"some.yaml:1: objective.prediction_type: .*'epsilon', 'sample' or 'v_prediction'; got eps",
    ),
    "a number for a section": ("train: 5", [], r"some.yaml:1: train: .*got 5"),
    "given twice": ("train: {}\n\ntrain: {}", [], r"some.yaml:3: train: given twice \(first at line 1\)"),
    "not YAML": ("train: [1,\n  2", [], r"some.yaml:\d: not valid YAML"),
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
    "a number for a section, and a flag": ("train: 5", ["--train.steps", "5"], r"some.yaml:1: train: .*got 5"),
    "a flag too deep": ("", ["--unet.levels", "[" * 3000], r"--unet.levels: not a valid value: \[\["),
    "a preset that is not a string": ("unet: {preset: [unet2015]}", [], "some.yaml:1: unet.preset: .*string"),
    "too wide": ("", ["--unet.levels", "[{channels: 1000000000}]"], r"--unet.levels: .*equal to 65536"),
    "too many": ("", ["--sample.num_images", "1000000000000"], r"--sample.num_images: .*equal to 10000000"),
    "no value": ("", ["--train.steps"], r"--train.steps: expected one argument"),
    "impossible together": (
        "objective: {type: ddpm, prediction_type: epsilon, rescale_betas_zero_snr: true}",
        [],
        r"some.yaml:1: objective: rescale_betas_zero_snr.* epsilon",
    ),
}


@pytest.mark.parametrize(("text", "argv", "message"), WRONG.values(), ids=WRONG)
def test_each_mistake_is_one_line_that_begins_with_its_place(tmp_path, text, argv, message):
    with pytest.raises(UserError, match=message) as mistake:
        read(tmp_path, text, argv)
    assert len(str(mistake.value).splitlines()) == 1


def test_an_empty_json_file_is_an_error(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="config.json:1: expected keys with values, got None"):
        settings_from(tmp_path / "config.json", Config)


def test_all_mistakes_are_reported_at_once(tmp_path):
    with pytest.raises(UserError) as mistakes:
        read(tmp_path, "train: {steps: 0}\nunet: {dims: 4}", ["--data.workers", "-1"])
    assert len(str(mistakes.value).splitlines()) == 3


def test_error_for_a_missing_file_suggests_the_closest_name(tmp_path):
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(UserError, match=r"digit.yaml: no such file; did you mean digits.yaml\?"):
        settings_from(tmp_path / "digit.yaml", Config)


def help_text() -> str:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    return " ".join(parser.format_help().split())


def test_help_has_description_default_and_range_of_every_flag():
    text = help_text()
    assert "those of the finest level. [default: 0.0002; auto; > 0]" in text  # the bound of one member of a union
    assert "Gradients are clipped to this norm. [default: 1.0; > 0]" in text
    assert "epsilon | sample | v_prediction" in text

    def check(settings: type[Settings], above: str) -> int:
        found = 0
        for name, field in fields_of(settings).items():
            flag, annotation = f"{above}{name}", field.annotation
            if (inner := mapping_of(field)) is not None:
                assert f"--{flag} " in text
                flag, annotation = f"{flag}.NAME", inner
            if section := section_of(field):
                found += check(section, f"{flag}.")
            elif variants := variants_of(annotation):
                found += sum(check(variant, f"{flag}.") for variant in variants.values())
            else:
                assert f"--{flag} " in text
                assert docstrings_of(settings).get(name) or name == "type", f"{flag} has no docstring"
                found += 1
        return found

    assert check(Config, "") >= 90


# ── tagged unions ─────────────────────────────────────────────────────────────────────────────────

DDPM = "objective: {type: ddpm, prediction_type: v_prediction, beta_schedule: cosine, condition_dropout: 0.3}"


def error(path, text="", argv=()) -> str:
    """Return the message of a config that is refused."""
    with pytest.raises(UserError) as mistake:
        read(path, text, argv)
    return str(mistake.value)


def test_switching_the_type_keeps_shared_keys_and_drops_those_of_the_other_type(tmp_path):
    for flag in ("--objective", "--objective.type"):
        objective = read(tmp_path, DDPM, [flag, "edm"]).objective
        assert objective == EDMConfig(condition_dropout=0.3)
    assert read(tmp_path, DDPM, ["--objective", "ddpm"]).objective.prediction_type == "v_prediction"


def test_the_type_is_set_before_the_keys_of_that_type(tmp_path):
    """In whatever order the flags come."""
    for argv in (["--objective.sigma_data", "0.4", "--objective", "edm"], ["--objective=edm", "--objective.P_mean=-1"]):
        assert read(tmp_path, DDPM, argv).objective.type == "edm"


@pytest.mark.parametrize("flag", ["--objective", "--objective.type"])
def test_an_unknown_type_suggests_the_closest(tmp_path, flag):
    known = "ddpm, edm, flow, consistency"
    assert error(tmp_path, DDPM, [flag, "edn"]) == f"{flag}: edn is not one of {known}; did you mean edm?"


def test_a_key_of_another_type_is_an_error(tmp_path):
    line = error(tmp_path, DDPM, ["--objective.sigma_data", "0.4"])
    assert line.startswith("--objective.sigma_data: unknown key")
    assert len(line.splitlines()) == 1
    assert error(tmp_path, "objective:\n  type: edm\n  prediction_type: epsilon").startswith(
        "some.yaml:3: objective.prediction_type: unknown key".replace("some.yaml", str(tmp_path / "some.yaml"))
    )


def test_a_union_without_type_is_an_error(tmp_path):
    assert re.search(r"some.yaml:1: objective.*: missing; one of ddpm, edm, flow", error(tmp_path, "objective: {}"))


# ── mappings ──────────────────────────────────────────────────────────────────────────────────────


def test_flags_add_an_entry_to_a_mapping(tmp_path):
    argv = ["--conditions.digit.type", "label", "--conditions.digit.column", "label"]
    assert read(tmp_path, "", argv).conditions == {"digit": LabelConfig(column="label")}
    assert set(read(tmp_path, "conditions: {label: {type: label}}", argv).conditions) == {"label", "digit"}
    assert read(tmp_path, "", ["--conditions.digit.type=label"]).conditions == {"digit": LabelConfig()}


def test_flags_replace_a_mapping(tmp_path):
    text = "conditions: {label: {type: label}}"
    assert read(tmp_path, text, ["--conditions", "{}"]).conditions == {}
    digit = read(tmp_path, text, ["--conditions", "{digit: {type: label, column: label}}"])
    assert digit.conditions == {"digit": LabelConfig(column="label")}
    assert read(tmp_path, "", ["--sample.conditions.label", "3"]).sample.conditions == {"label": "3"}


@pytest.mark.parametrize("name", ["image", "time", "steps", "num_images", "augmentation", "output"])
def test_a_reserved_condition_name_is_an_error(tmp_path, name):
    argv = [f"--conditions.{name}.type", "label"]
    assert error(tmp_path, "", argv) == f"--conditions.{name}.type: {name} is a reserved name; choose another"


def test_a_condition_name_that_is_not_an_identifier_is_an_error(tmp_path):
    line = error(tmp_path, "conditions: {'my label': {type: label}}")
    assert "some.yaml:1: conditions" in line
    assert "is not a name: use at most 64 letters, digits and _" in line


def test_mistakes_in_an_entry_are_at_its_line(tmp_path):
    text = "conditions:\n  digit:\n    type: label\n    colum: x"
    assert error(tmp_path, text).endswith("some.yaml:4: conditions.digit.colum: unknown key; did you mean column?")
    assert "--conditions.digit.type: labl is not one of label" in error(
        tmp_path, "", ["--conditions.digit.type", "labl"]
    )
    assert "did you mean --conditions.NAME.column?" in error(tmp_path, "", ["--conditions.digit.colum", "x"])


def test_null_and_lists_for_a_mapping_are_errors(tmp_path):
    for value in ("5", "[label]", "null", "{label: 3}", "{label: null}"):
        line = error(tmp_path, "", ["--conditions", value])
        assert line.startswith("--conditions"), line
        assert len(line.splitlines()) == 1


def test_a_base_has_the_values_that_the_file_lacks_and_errors_keep_their_lines(tmp_path):
    """A section of another type replaces that of the base."""
    base = Config(objective=DDPMConfig(beta_schedule="cosine"), train=TrainConfig(steps=7, batch_size=3))
    file = tmp_path / "config.yaml"
    file.write_text("objective: {type: edm, sigma_data: 0.7}\ntrain: {batch_size: 5}\n")
    config = settings_from(file, Config, {"train.seed": "9"}, base=base)
    assert config.objective == EDMConfig(sigma_data=0.7)
    assert config.train == TrainConfig(steps=7, batch_size=5, seed=9)
    file.write_text("train: {batch_size: 5}\nobjective: {beta_schedule: 3}\n")
    with pytest.raises(UserError, match=r"config.yaml:2: objective.beta_schedule: "):
        settings_from(file, Config, base=base)


def test_a_key_that_is_a_word_of_python_has_another_name_in_code(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("finetune: {from: runs/digits}\n")
    config = settings_from(file, Config, {"finetune.lora_rank": "2"})
    assert config.finetune.pretrained == "runs/digits"
    assert "finetune:\n  from: runs/digits\n" in config.to_yaml()
    file.write_text("finetune: {form: runs/digits}\n")
    with pytest.raises(UserError, match=r"finetune.form: unknown key; did you mean from\?"):
        settings_from(file, Config)


@pytest.mark.parametrize("word", ["[edm]", "{edm: 1}"])
def test_a_type_that_is_no_word_is_refused(tmp_path, word):
    with pytest.raises(UserError, match="objective.type"):
        read(tmp_path, "objective: {type: ddpm}", ["--objective.type", word])
