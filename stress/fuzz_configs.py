"""Configs and command lines that are invalid or unreadable."""

import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml

from diffunet.core.errors import printable
from diffunet.core.settings import Settings
from diffunet.runs.config import CONFIG_DIR, Config, ModelConfig
from diffunet.runs.evaluate import EvaluationConfig
from diffunet.sampling.generate import SampleConfig
from diffunet.tasks.classification import ClassificationConfig

from .cases import PRINT, TINY, TRAIN, VALUES, Case, keys_of, with_value

# ── configs ────────────────────────────────────────────────────────────────────────────────────────

ABSURD = {
    "unet.levels": [{"channels": 10**9}],
    "unet.levels.0.blocks": [{"channels": 8, "blocks": 10**9}],
    "unet.levels.0.down": [{"channels": 8, "down": [10**9]}],
    "unet.middle_blocks": 10**9,
    "unet.vector_dim": 10**9,
    "objective.num_train_timesteps": 10**12,
    "data.resolution": 10**9,
    "data.workers": 10**9,
    "train.batch_size": 10**12,
    "train.gradient_accumulation_steps": 10**12,
    "train.steps": 10**15,
    "sample.num_images": 10**12,
    "sample.steps": 10**12,
    "sample.guidance_scale": float("inf"),
}
"""Well typed, and absurd."""
TEXTS = {
    "nothing": "",
    "a comment": "# nothing\n",
    "a word": "train",
    "a list": "- 1\n- 2\n",
    "two documents": "train: {}\n---\ndata: {}\n",
    "a tag that runs": "train: !!python/object/apply:os.system [exit]\n",
    "an unknown tag": "train: !mine {steps: 1}\n",
    "a billion laughs": "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}{f', *a{n}' * 8}]\n" for n in range(25)),
    "a list in itself": "train: &a [*a]\n",
    "keys in themselves": "train: &a {train: *a}\n",
    "no such anchor": "train: *nobody\n",
    "merged keys": "train: &a {steps: 1}\nsample: {<<: *a}\n",
    "merged with a list": "train: {<<: [1]}\n",
    "merged with itself": "train: &a {<<: *a}\n",
    "very deep": "train: " + "[" * 5000,
    "very deep, closed": "train: " + "[" * 900 + "]" * 900,
    "very deep keys": "".join(" " * n + "a:\n" for n in range(500)),
    "many keys": "".join(f"k{n}: {n}\n" for n in range(3000)),
    "a very long line": "train: {output: " + "x" * 1_000_000 + "}\n",
    "a huge number": "train: {steps: 1" + "0" * 5000 + "}\n",
    "an int and a text that is the same key": "train: {}\n'train': {}\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is keys": "? {a: b}\n: 1\n",
    "a key that is null": "~: 1\n",
    "a key that is a number": "3: 1\n",
    "tabs": "train:\n\tsteps: 1\n",
    "control characters": "train: {output: \x07}\n",
    "JSON cut off": '{"train": {"steps": ',
    "sexagesimal": "train: {steps: 1:30}\n",
    "underscores": "train: {steps: _1_}\n",
    "only underscores": "train: {steps: +_}\n",
    "binary": "train: {steps: !!binary 'AAAA'}\n",
    "a set": "train: !!set {steps}\n",
    "a float tag on a word": "train: {learning_rate: !!float many}\n",
    "an int tag on a word": "train: {steps: !!int many}\n",
    "a bool tag on a word": "data: {random_flip: !!bool many}\n",
    "a timestamp tag on a word": "train: {steps: !!timestamp many}\n",
    "a surrogate": 'train: {output: "\\ud800"}\n',
    "a null byte": 'train: {output: "a\\0b"}\n',
}  # fmt: skip
"""Whole files, each wrong in its own way."""


def config_case(rng: Random, folder: Path) -> Case:
    """Return a case of a config in which a value, some characters, the encoding or everything is wrong."""
    file = folder / "case.yaml"
    argv = rng.choice([TRAIN, PRINT])
    somewhere = ("case.yaml", *keys_of(Config))
    match rng.choice(["value", "value", "absurd", "text", "characters", "characters", "bytes", "file"]):
        case "value":
            key, value = rng.choice([key for key in keys_of(Config) if key != "train.minutes"]), rng.choice(VALUES)
            file.write_text(_tiny_with(key, value), encoding="utf-8")
            if key in ("train.output", "data.path"):  # any name may be valid
                argv = PRINT
            return Case(f"{key}: {value!r}"[:100], argv, (key.rpartition(".")[2],))
        case "absurd":
            key, value = rng.choice(list(ABSURD.items()))
            key = key.partition(".0")[0]
            file.write_text(_tiny_with(key, value), encoding="utf-8")
            return Case(f"{key}: {value!r}", PRINT, (key,), "refused")
        case "text":
            about, text = rng.choice(list(TEXTS.items()))
            file.write_text(text, encoding="utf-8")
            return Case(about, PRINT, somewhere)
        case "characters":
            shipped = sorted(CONFIG_DIR.glob("*.yaml"))
            text = rng.choice([TINY, TINY, rng.choice(shipped).read_text(encoding="utf-8")])
            for _ in range(rng.choice([1, 1, 2, 8])):
                text = _mutated(text, rng)
            file.write_text(text, encoding="utf-8")
            return Case("some characters", PRINT, somewhere)
        case "bytes":
            codec = rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp500"])
            data = rng.choice([TINY.encode(codec), TINY.encode() + b"\xff\xfe", b"\0" * 100, rng.randbytes(300)])
            file.write_bytes(data)
            return Case("some bytes", argv, somewhere)
    kind = rng.choice(["folder", "link to itself", "link to nothing", "nothing"])
    if kind == "folder":
        file.mkdir()
    elif kind != "nothing":
        file.symlink_to(file.name if kind == "link to itself" else "nothing.yaml")
    return Case(f"the config is a {kind}", argv, ("case.yaml",), "refused")


def _tiny_with(key: str, value: Any) -> str:
    """Return the text of TINY with one value changed."""
    return yaml.safe_dump(with_value(yaml.safe_load(TINY), Config, key, value), allow_unicode=True)


def _mutated(text: str, rng: Random) -> str:
    """Return the text with something removed, inserted or moved."""
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.choice([1, 1, 3, 40]))
    lines = text.splitlines(keepends=True)
    match rng.randrange(5):
        case 0:
            return text[:start] + text[stop:]
        case 1:
            return text[:start] + rng.choice("{}[]:,#&*!|>'\"%@`~-?\t\n \0é\u2028\ufeff") + text[start:]
        case 2:
            return text[:start]
        case 3:
            return "".join([*lines, *rng.sample(lines, min(len(lines), 2))])
    return "".join(rng.sample(lines, len(lines)))


# ── command lines ──────────────────────────────────────────────────────────────────────────────────

WORDS = ("", " ", "-", "--", "---", "-1", "0", "0.5", "1e400", "nan", "3", "1" * 30, "10" * 2500, "null", "true",
         "many", "[", "[]", "[1", "[1, 2, 3]", "{}", "{a: 1}", "&a [*a]", "!!python/none", "*a", "é", "🙂", "\udcff",
         "%s%n", "{}{0}", "case.yaml", "nowhere", "nowhere/at/all", "owner/name", "x" * 300, "x" * 5000, "a/" * 2500,
         "/dev/null", "/dev/null/x", "/proc/nowhere/x", ".", "run", "run/model", "run/config.yaml", "--help me", "-h=1",
         "all", "none", "a,b,,", "0,0", "-1,-1", "99999999999", "--seed", "--config", "--resume")  # fmt: skip
COMMAND_LINES: dict[str, tuple[tuple[type[Settings], ...], tuple[str, ...]]] = {
    "train": ((Config,), ("--config", "case.yaml", *TRAIN[3:])),
    "sample": ((SampleConfig,), ("run", "--num_images", "1", "--steps", "1")),
    "evaluate": ((SampleConfig, EvaluationConfig), ("run", "--num_images", "3", "--steps", "1")),
    "ema": ((SampleConfig, EvaluationConfig), ("run", "0.1")),
    "classifier": (
        (ClassificationConfig,),
        ("--train.steps", "1", "--train.batch_size", "2", "--blocks", "[1, 1, 1, 1]"),
    ),
    "describe": ((ModelConfig,), ("case.yaml", "--size", "16")),
    "export": ((), ("run", "out", "--label", "3")),
    "import": ((), ("run", "made")),
}
SLOW = {"train.minutes", "blocks", "data.path"}
"""Flags whose odd values may be valid, and take long."""


def command_case(rng: Random, folder: Path, run: Path) -> Case:
    """Return a case of a valid command line with some words changed."""
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    command = rng.choice(list(COMMAND_LINES))
    settings, line = COMMAND_LINES[command]
    if "run" in line:
        shutil.copytree(run, folder / "run")
    words, flags = list(line), [key for each in settings for key in keys_of(each) if key not in SLOW]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place, word = rng.randrange(len(words) + 1), rng.choice(WORDS)
        match rng.choice(["flag", "flag", "typo", "insert", "replace", "remove"]):
            case "flag" if flags:
                key = rng.choice(flags)
                words += rng.choice([[f"--{key}", word], [f"--{key}={word}"]])
            case "typo" if flags:
                key = rng.choice(flags)
                words += [f"--{_mutated(key, rng)}".replace("\0", "").replace("\n", ""), word]
            case "remove":
                del words[place : place + 1]
            case "replace":
                words[place : place + 1] = [word]
            case _:
                words.insert(place, word)
    keys = [key.rpartition(".")[2] for key in flags]
    names = (
        *(printable(word)[:100] for word in words if word),
        *keys,
        "''",
        "--size",
        "--help",
        "required",
        "expected one argument",
    )
    return Case(" ".join(words)[:100], (command, *words), names)
