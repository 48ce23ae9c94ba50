"""Conditions of all types: odd configurations, odd values in their columns, odd words in sampling, damaged files."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from PIL import Image

from diffunet.conditions.types import Condition
from diffunet.core.settings import variants_of

from .cases import PRINT, VALUES, Case
from .fuzz_configs import WORDS

SIDE, NUMBER = 8, 24
NAMES = ("label", "caption", "source", "numbers", "small")
"""The conditions of MIXED."""
MIXED = """
unet: {levels: [{channels: 8, blocks: 1}, {channels: 16, blocks: 1, attention: true}], norm_groups: 8, dropout: 0.1}
conditions:
  label: {type: label}
  caption: {type: text, column: text, width: 16, layers: 1, heads: 2, word_dropout: 0.2, dropout: 0.1}
  source: {type: image, dropout: 0.1}
  numbers: {type: vector, column: [weight, age]}
  small: {type: image, by: [{downscale: 2}]}
data: {path: photos, random_flip: true, augmentation: 0.3, held_out: 0.2}
train: {output: run, steps: 8, batch_size: 8, gradient_accumulation_steps: 2, learning_rate: 1e-3, ema_decay: 0.9,
        log_every: 2, checkpoint_every: 4, preview_every: 8, snapshots: 0,
        runtime: {mixed_precision: 'no', compile: false}}
sample: {num_images: 4, steps: 3, guidance_scale: 1.5, runtime: {mixed_precision: 'no'}}
"""
"""A run with all types of conditions, on `write_photos`."""


def write_photos(folder: Path) -> None:
    """Write an image folder with columns of all types, each but the label without some values."""
    records = []
    for index in range(NUMBER):
        random = np.random.default_rng(index)
        name, kind = f"{index:02d}.png", ["disk", "ring", "star"][index % 3]
        for path, shape in ((folder / name, (SIDE, SIDE, 3)), (folder / "sources" / name, (SIDE, SIDE))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
        captions = [f"a small {kind}", f"{kind} number {index}", f"one more {kind}"][: index % 4]
        source = None if index % 7 == 3 else f"sources/{name}"
        weight = None if index % 5 == 2 else index / 2
        record = {"label": kind, "text": captions, "source_file_name": source, "weight": weight, "age": index % 4}
        records.append({"file_name": name, **record})
    write_metadata(folder, records)


def read_metadata(folder: Path) -> list[dict]:
    """Return the lines of metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def write_metadata(folder: Path, records: list[dict]) -> None:
    """Write metadata.jsonl."""
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


# ── cases ──────────────────────────────────────────────────────────────────────────────────────────

TYPES = {"label": "label", "caption": "text", "source": "image", "numbers": "vector", "small": "image"}
TRAIN = ("train", "--config", "case.yaml", "--train.steps", "1", "--train.output", "new")
BY: tuple[Any, ...] = (
    [{"downscale": 3}], [{"downscale": 8}], [{"downscale": 1024}], [{"gray": True}, {"gray": True}], [{"gray": False}],
    [{"blur": -1}], [{"blur": [2, 1]}], [{"blur": 100}], [{"blur": 1e-320}], [{"mask": [0, 0]}], [{"mask": [1, 1]}],
    [{"mask": [0.1, 0.2]}, {"noise": [0, 1]}], [{"extend": [4, 4, 4, 4]}], [{"extend": [8, 0, 0, 0]}],
    [{"extend": [1, 2, 3]}], [{"jpeg": [1, 100]}], [{"noise": [0, 100]}], [{"downscale": 2}] * 3,
    [{"downscale": 2}] * 4, [{}], [{"zoom": 2}], "gray", [["gray"]], [{"gray": True}] * 50,
    [{"extend": [1, 1, 1, 1]}, {"mask": [0, 1]}],
)  # fmt: skip
"""Degradations at the edge of what is possible, and beyond."""
NUMBERS = (None, 0, -1, 3, 0.5, 1e300, -1e-320, 2**62, 10**30, True)
TEXTS = ("", " ", "a,b", "none", "null", "é", "日本", "🙂" * 50, "a\0b", "\u2028", "<pad>", "left", "x" * 5000,
         "a " * 5000, "nowhere.png", "00.png", "sources", "../photos/00.png", "/etc/hostname", "metadata.jsonl",
         "1", "\ud7ff")  # fmt: skip
NESTED: tuple[Any, ...] = (
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    [1, 2],
    [1, None],
    ["a", None, ""],
    [["a"]],
    [1, "a"],
    [1] * 300,
)
COLUMNS = ("label", "text", "source_file_name", "weight", "age")
FLAGS = (
    "nothing.txt", "empty.txt", "prompts.txt", "bytes.txt", "photos", "photos/sources", "photos/00.png",
    "photos/metadata.jsonl", "bytes.txt/x", "many words " * 200, "1,2", "1,2;3,4", "1;2", "nan,nan", "1e400,0",
    "1,2,3", "[1, 2]", "[null, null]", "[ring, null, 0]", "ring,disk", "ring, disk", "{ring: 1}", "run/examples/small",
    "run/examples/small/00000.png",
)  # fmt: skip
"""Words for any condition, some of which suit one."""
SETTINGS = (
    ("--agree",), ("--agree", "true"), ("--tile", "8"), ("--tile", "5"), ("--tile", "65536"), ("--batch_size", "3"),
    ("--guidance_scale", "{caption: 3}"), ("--guidance_scale", "{source: 0, label: 2}"), ("--guidance_scale", "{}"),
    ("--guidance_scale", "{lable: 3}"), ("--guidance_scale", "{label: null}"), ("--guidance_scale", "{label: -1}"),
    ("--conditions", "{}"), ("--conditions", "{label: none}"), ("--conditions", "{label: [0, null], numbers: [1, 2]}"),
    ("--conditions", "{small: [null]}"), ("--conditions", "{caption: []}"), ("--guide", "0.5"), ("--num_images", "3"),
)  # fmt: skip
DAMAGES = ("model/caption.tokenizer.json", "examples/metadata.jsonl", "examples/small/00000.png", "examples/00000.png")


def condition_case(rng: Random, folder: Path, home: Path) -> Case:
    """Return a case of a condition: its configuration, its column, words for it, or its files in a run.

    home: a folder with `photos` and a `run` of MIXED.
    """
    shutil.copytree(home / "photos", folder / "photos")
    (folder / "case.yaml").write_text(MIXED, encoding="utf-8")
    kind = rng.choice(["config", "config", "column", "column", "words", "words", "file"])
    if kind == "config":
        return _config_case(rng, folder)
    if kind == "column":
        return _column_case(rng, folder)
    shutil.copytree(home / "run", folder / "run")
    (folder / "empty.txt").write_text(" \n")
    (folder / "prompts.txt").write_text("a small ring\n\nnone\n", encoding=rng.choice(["utf-8", "utf-8-sig"]))
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\0")
    argv = ["sample", "run", "--num_images", "2", "--steps", "1"]
    if kind == "words":
        for name in rng.sample(NAMES, rng.choice([1, 1, 2, 3])):
            argv += [f"--{name}", rng.choice(FLAGS if rng.random() < 0.8 else WORDS)]
        for words in rng.sample(SETTINGS, rng.choice([0, 1, 2])):
            argv += words
        keys = ("tile", "agree", "guidance_scale", "lable", "batch_size", "num_images", "guide", "conditions", "run/")
        return Case(" ".join(argv[6:])[:100], tuple(argv), (*NAMES, *keys, *(word for word in argv if word)))
    file = folder / "run" / rng.choice(DAMAGES)
    data, damage = file.read_bytes(), rng.choice(["removed", "cut", "a bit", "empty", "a folder", "another"])
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "removed":
        place = rng.randrange(len(data))
        changed = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        other = rng.choice([b"[]", b"null", b"{}", b'{"file_name": 1}', b'{"file_name": "x", "small": 3}\n', b"\xff"])
        file.write_bytes({"cut": data[:place], "a bit": changed, "empty": b"", "another": other}[damage])
    argv += rng.choice([[], [], ["--caption", "a ring"], ["--agree"]])
    return Case(f"{file.name}: {damage}", tuple(argv), (file.name, "run/examples", *NAMES, "agree"))


def _config_case(rng: Random, folder: Path) -> Case:
    """Return a case of MIXED with one or two odd values in its conditions."""
    values, about = yaml.safe_load(MIXED), []
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(NAMES)
        fields = variants_of(Condition)[TYPES[name]].model_fields
        match rng.choice(["key", "key", "by", "column", "name", "type"]):
            case "key":
                key, value = rng.choice(list(fields)), rng.choice(VALUES)
            case "by":
                name, key, value = rng.choice(["small", "source"]), "by", rng.choice(BY)
            case "column":
                key, value = (
                    "column",
                    rng.choice([*COLUMNS, "source", "image", "lable", ["age", "weight"]]),
                )
            case "name":
                odd = rng.choice(["time", "image", "seed", "a b", "", "1", "é", "class", "augmentation", "x" * 300])
                values["conditions"][odd] = values["conditions"].pop(name, {"type": "label"})
                about.append(f"{name} is {odd}"[:50])
                continue
            case _:
                key, value = "type", rng.choice(["label", "text", "image", "vector", "augmentation", "sound"])
        values["conditions"].setdefault(name, {"type": TYPES[name]})[key] = value
        about.append(f"{name}.{key}: {value!r}"[:80])
    (folder / "case.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return Case(", ".join(about), rng.choice([TRAIN, TRAIN, PRINT]), ("conditions", "unet.", "data.path: photos"))


def _column_case(rng: Random, folder: Path) -> Case:
    """Return a case of a column in which some or all values are odd."""
    column, records = rng.choice(COLUMNS), read_metadata(folder / "photos")
    table = rng.choice([NUMBERS, TEXTS, NESTED])
    odd = rng.choice([[rng.choice(table)], [rng.choice(table)], list(table), [*table, *NUMBERS, *TEXTS]])
    share = rng.choice([0.05, 0.5, 1.0, 1.0])
    for record in records:
        if rng.random() < share:
            record[column] = rng.choice(odd)
            if rng.random() < 0.1:
                del record[column]
    write_metadata(folder / "photos", records)
    options = rng.choice([(), (), ("--data.memory_budget", "0"), ("--data.held_out", "0.5")])
    names = ("conditions.", "data.path", "metadata", "photos")
    return Case(f"{share:.0%} of {column}: {', '.join(map(repr, odd))}"[:100], (*TRAIN, *options), names)
