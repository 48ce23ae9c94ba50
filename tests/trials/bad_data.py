"""Folders of pictures and parquet files of which some, all or none is broken."""

import json
from pathlib import Path
from random import Random

from .cases import TINY, TRAIN, Case
from .pictures import BROKEN, DOUBTFUL, GOOD, STEMS, noise

# ── folders of pictures ────────────────────────────────────────────────────────────────────────────

METADATA = {
    "a broken line": ("jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "1.pn'),
    "no file_name": ("jsonl", '{"name": "0.png"}\n'),
    "a name of nothing": ("jsonl", '{"file_name": "nothing.png"}\n'),
    "some names of nothing": ("jsonl", '{"file_name": "0.png"}\n{"file_name": "nothing.png"}\n'),
    "a number for a name": ("jsonl", '{"file_name": 3}\n'),
    "null for a name": ("jsonl", '{"file_name": null}\n{"file_name": "0.png"}\n'),
    "a list": ("jsonl", "[1, 2]\n"),
    "an empty file": ("jsonl", ""),
    "labels of several kinds": ("jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "1.png", "label": "a"}\n'),
    "labels missing": ("jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "1.png"}\n'),
    "nested labels": ("jsonl", '{"file_name": "0.png", "label": {"a": [1]}}\n'),
    "the same name twice": ("jsonl", '{"file_name": "0.png"}\n{"file_name": "0.png"}\n'),
    "a table": ("csv", "file_name,label\n0.png,1\n1.png,2\n"),
    "a table without names": ("csv", "name,label\n0.png,1\n"),
    "a table with a short line": ("csv", 'file_name,label\n0.png\n1.png,2,3,4\n"'),
    "bytes": ("jsonl", "\0\1\2\3"),
    "bytes as a table": ("csv", "\0\1\2\3"),
    "no parquet": ("parquet", "PAR1 it says"),
}
OUTSIDE = (
    "../outside.png",
    "{folder}/outside.png",
    "a/../../outside.png",
    "./../outside.png",
    "link/../../outside.png",
)


MIXTURES = (
    (0, 1, 0),
    (0, 4, 0),
    (3, 0, 0),
    (8, 2, 0),
    (8, 3, 0),
    (5, 1, 2),
    (1, 1, 0),
    (30, 12, 0),
    (0, 0, 3),
    (2, 0, 3),
)
"""How many good, broken and doubtful ones."""


def picture_case(rng: Random, folder: Path) -> Case:
    """A folder of pictures of which some, all or none are broken, or whose metadata file is."""
    if rng.random() < 0.2:
        return _metadata_case(rng, folder)
    numbers = rng.choice(MIXTURES)
    tables = [table for table, n in zip((GOOD, BROKEN, DOUBTFUL), numbers, strict=True) for _ in range(n)]
    wishes = [(table, rng.choice(list(table))) for table in tables]
    rng.shuffle(wishes)
    classes = rng.choice([[""], [""], ["cat", "dog"], ["a class", "日本"]])
    broken = []
    for number, (table, kind) in enumerate(wishes):
        suffix, write = table[kind]
        path = folder / "pictures" / rng.choice(classes) / f"{number}_{rng.choice(STEMS)}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rng)
        broken += [path.name] * (table is BROKEN)
    good, bad, doubtful = numbers
    options = ["--data.path", "pictures", "--data.resolution", rng.choice(["8", "[8, 12]", "64"])]
    options += rng.choice([[], [], ["--data.channels", "1"], ["--data.channels", "4"], ["--data.bit_depth", "16"]])
    as_needed = rng.random() < 0.2
    options += ["--data.memory_budget", "0", "--data.workers", rng.choice(["0", "1"])] if as_needed else []
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    about = f"{good} good, {bad} broken, {doubtful} doubtful: {', '.join(sorted({kind for _, kind in wishes}))}"
    argv = (*TRAIN, *options)
    if doubtful:
        return Case(about, argv, ("pictures", "data."))
    if not good:
        return Case(about, argv, ("data.path: none", "data.path: not one"), "refused")
    named = tuple(broken) if len(broken) <= 10 else ()
    told = (f"left out {bad} of {good + bad} pictures", *named) if broken and not as_needed else ()
    return Case(about, argv, (), "accepted", told)


def _metadata_case(rng: Random, folder: Path) -> Case:
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    (folder / "pictures").mkdir()
    for number in range(3):
        noise(rng).save(folder / "pictures" / f"{number}.png")
    argv = (*TRAIN, "--data.path", "pictures", "--data.resolution", "8")
    if rng.random() < 0.4:
        noise(rng).save(folder / "outside.png")
        (folder / "pictures" / "link").symlink_to(".")
        name = rng.choice(OUTSIDE).format(folder=folder)
        lines = [json.dumps({"file_name": each}) for each in ["0.png", name]]
        (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
        return Case(f"metadata names {name}", argv, ("outside.png",), "refused")
    about, (suffix, text) = rng.choice(list(METADATA.items()))
    (folder / "pictures" / f"metadata.{suffix}").write_text(text, encoding=rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    return Case(f"metadata.{suffix}: {about}", argv, ("metadata", "pictures", "data."))


# ── parquet files ──────────────────────────────────────────────────────────────────────────────────

LABELS = {
    "null": [0, None, 1],
    "negative": [-1, 0, 1],
    "float": [0.5, 1.0, 2.0],
    "nan": [float("nan"), 0.0, 1.0],
    "huge": [0, 1, 2**62],
    "large": [0, 1, 10**9],
    "words": ["a", "b", "a"],
    "lists": [[0], [1], [2]],
    "bytes": [b"a", b"b", b"c"],
    "yes and no": [True, False, True],
    "all null": [None, None, None],
    "records": [{"a": 1}, {"a": 2}, {"a": 3}],
    "empty words": ["", "", "a"],
    "words with commas": ["a,b", "none", "null"],
    "fine": [0, 1, 2],
}
IMAGES = {
    "numbers": [1, 2, 3],
    "words": ["a", "b", "c"],
    "null": [None, None, None],
    "lists": [[1], [2], [3]],
    "records without bytes": [{"a": 1}] * 3,
    "bytes that are words": [{"bytes": "text", "path": None}] * 3,
    "bare bytes": None,
    "broken bytes": [{"bytes": b"this is no picture", "path": "x.png"}] * 3,
    "empty bytes": [{"bytes": b"", "path": "x.png"}] * 3,
    "neither bytes nor path": [{"bytes": None, "path": None}] * 3,
    "a path of nothing": [{"bytes": None, "path": "nothing.png"}] * 3,
    "a path outside": [{"bytes": None, "path": "../outside.png"}] * 3,
    "an address": [{"bytes": None, "path": "https://example.com/x.png"}] * 3,
    "one null": "one null",
    "one broken": "one broken",
}


def parquet_case(rng: Random, folder: Path) -> Case:
    """A parquet file with a column missing or mistyped, or that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    file = folder / "set" / rng.choice(["train-0.parquet", "set.parquet", "with space é.parquet", "train.PARQUET"])
    file.parent.mkdir()
    noise(rng).save(folder / "outside.png")
    png = (folder / "outside.png").read_bytes()
    images: list = [{"bytes": png, "path": f"{number}.png"} for number in range(3)]
    columns = {"image": images, "label": LABELS["fine"]}
    options = rng.choice([[], [], ["--data.image_column", "image"], ["--data.label_column", "label"]])
    expected, names, told, about = "either", ("set", "data."), (), ""
    match rng.choice(["labels", "labels", "images", "images", "columns", "file", "file", "fine"]):
        case "labels":
            kind = rng.choice(list(LABELS))
            columns["label"], about = LABELS[kind], f"labels: {kind}"
            if kind in ("null", "negative", "huge", "large", "all null", "lists"):
                expected, names = "refused", ("data.label_column",)
        case "images":
            kind = rng.choice(list(IMAGES))
            about, columns["image"] = f"pictures: {kind}", IMAGES[kind]
            options = ["--data.image_column", "image"]
            expected = "refused"
            if kind == "bare bytes":
                columns["image"], expected = [png] * 3, "accepted"
            elif kind.startswith("one"):
                broken = {"one null": None, "one broken": {"bytes": png[:-200], "path": "bad.png"}}[kind]
                columns["image"], expected, told = [images[0], broken, images[2]], "accepted", ("left out 1 of 3",)
        case "columns":
            about = rng.choice(["none", "no picture", "two pictures", "another name", "another label", "nested"])
            columns = {
                "none": {},
                "no picture": {"label": [0, 1, 2]},
                "two pictures": {"image": images, "other": images},
                "another name": {"imgae": images},
                "another label": {"image": images, "lable": [0, 1, 2]},
                "nested": {"image": [[image] for image in images]},
            }[about]
            options = [] if about == "another label" else ["--data.image_column", "image"]
        case "file":
            about = "the file"
        case _:
            expected, about = "accepted", "nothing wrong"
    table = pa.table(columns)
    pq.write_table(table.slice(0, 0) if rng.random() < 0.05 else table, file)
    if len(pq.read_table(file)) == 0:
        expected, told, about = "refused", (), about + ", no rows"
        names = ("set", "data.")
    if about.startswith("the file"):
        data = file.read_bytes()
        kind = rng.choice(["cut", "empty", "text", "zeroed", "no end", "flipped", "folder", "link to itself"])
        about, expected = f"the file: {kind}", "either" if kind == "flipped" else "refused"
        file.unlink()
        half = len(data) // 2
        changed = {
            "cut": data[:half],
            "empty": b"",
            "text": b"a,b\n1,2\n",
            "zeroed": bytes(len(data)),
            "no end": data[:-4],
            "flipped": data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :],
        }
        if kind in changed:
            file.write_bytes(changed[kind])
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(file.name)
    path = rng.choice(["set", str(file.relative_to(folder))])
    if file.suffix == ".PARQUET" and path == "set":
        expected, told = "either", ()
    argv = (*TRAIN, "--data.path", path, "--data.resolution", "8", *options)
    return Case(f"{about}; {path}", argv, names, expected, told)
