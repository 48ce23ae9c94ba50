"""Folders of images, and parquet files, of which some, all or none are broken."""

import json
from pathlib import Path
from random import Random

from .cases import TINY, TRAIN, Case
from .fuzz_images import AMBIGUOUS, BROKEN, GOOD, STEMS, noise

# ── folders of images ──────────────────────────────────────────────────────────────────────────────

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
    "no parquet": ("parquet", "PAR1 and text"),
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
"""Numbers of good, broken and ambiguous files."""


def image_folder_case(rng: Random, folder: Path) -> Case:
    """Return a case of a folder in which some, all or none of the images, or the metadata file, are broken."""
    if rng.random() < 0.2:
        return _metadata_case(rng, folder)
    numbers = rng.choice(MIXTURES)
    tables = [table for table, n in zip((GOOD, BROKEN, AMBIGUOUS), numbers, strict=True) for _ in range(n)]
    chosen = [(table, rng.choice(list(table))) for table in tables]
    rng.shuffle(chosen)
    classes = rng.choice([[""], [""], ["cat", "dog"], ["a class", "日本"]])
    broken = []
    for number, (table, kind) in enumerate(chosen):
        suffix, write = table[kind]
        path = folder / "images" / rng.choice(classes) / f"{number}_{rng.choice(STEMS)}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rng)
        broken += [path.name] * (table is BROKEN)
    good, bad, ambiguous = numbers
    options = ["--data.path", "images", "--data.resolution", rng.choice(["8", "[8, 12]", "64"])]
    options += rng.choice([[], [], ["--data.channels", "1"], ["--data.channels", "4"], ["--data.bit_depth", "16"]])
    as_needed = rng.random() < 0.2
    options += ["--data.memory_budget", "0", "--data.workers", rng.choice(["0", "1"])] if as_needed else []
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    about = f"{good} good, {bad} broken, {ambiguous} ambiguous: {', '.join(sorted({kind for _, kind in chosen}))}"
    argv = (*TRAIN, *options)
    if ambiguous:
        return Case(about, argv, ("images", "data."))
    if not good:
        return Case(about, argv, ("data.path: none", "data.path: not one"), "refused")
    named = tuple(broken) if len(broken) <= 10 else ()
    prints = (f"skipped {bad} of {good + bad} images", *named) if broken and not as_needed else ()
    return Case(about, argv, (), "accepted", prints)


def _metadata_case(rng: Random, folder: Path) -> Case:
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    (folder / "images").mkdir()
    for number in range(3):
        noise(rng).save(folder / "images" / f"{number}.png")
    argv = (*TRAIN, "--data.path", "images", "--data.resolution", "8")
    if rng.random() < 0.4:
        noise(rng).save(folder / "outside.png")
        (folder / "images" / "link").symlink_to(".")
        name = rng.choice(OUTSIDE).format(folder=folder)
        lines = [json.dumps({"file_name": each}) for each in ["0.png", name]]
        (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
        return Case(f"metadata names {name}", argv, ("outside.png",), "refused")
    about, (suffix, text) = rng.choice(list(METADATA.items()))
    (folder / "images" / f"metadata.{suffix}").write_text(text, encoding=rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    return Case(f"metadata.{suffix}: {about}", argv, ("metadata", "images", "data."))


# ── parquet files ──────────────────────────────────────────────────────────────────────────────────

LABELS = {
    "fine": ([0, 1, 2], "accepted"),
    "words": (["a", "b", "a"], "accepted"),
    "empty words": (["", "", "a"], "accepted"),
    "words with a meaning in flags": (["a,b", "none", "null"], "accepted"),
    "null": ([0, None, 1], "refused"),
    "all null": ([None, None, None], "refused"),
    "negative": ([-1, 0, 1], "refused"),
    "float": ([0.5, 1.0, 2.0], "refused"),
    "not a number": ([float("nan"), 0.0, 1.0], "refused"),
    "large": ([0, 1, 10**9], "refused"),
    "huge": ([0, 1, 2**62], "refused"),
    "lists": ([[0], [1], [2]], "refused"),
    "records": ([{"a": 1}, {"a": 2}, {"a": 3}], "refused"),
    "bytes": ([b"a", b"b", b"c"], "refused"),
    "yes and no": ([True, False, True], "refused"),
}
"""Contents of the label column."""
NO_IMAGES = {
    "numbers": [1, 2, 3],
    "words": ["a", "b", "c"],
    "null": [None, None, None],
    "bytes that are no images": [b"a", b"b", b"c"],
    "records without bytes": [{"a": 1}] * 3,
    "words for bytes": [{"bytes": "text", "path": None}] * 3,
    "empty bytes": [{"bytes": b"", "path": "x.png"}] * 3,
    "neither bytes nor path": [{"bytes": None, "path": None}] * 3,
    "a path of nothing": [{"bytes": None, "path": "nothing.png"}] * 3,
    "a path outside": [{"bytes": None, "path": "outside.png"}] * 3,
    "a path far outside": [{"bytes": None, "path": "/etc/hostname"}] * 3,
    "an address": [{"bytes": None, "path": "https://example.com/x.png"}] * 3,
    "lists of records": [[{"bytes": b"a", "path": "x.png"}]] * 3,
}
"""Contents of the image column, none of which are images."""
DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a table": lambda data: b"a,b\n1,2\n",
    "after an image header": lambda data: b"\x89PNG\r\n\x1a\n" + data,
    "zeros": lambda data: bytes(len(data)),
    "without its end": lambda data: data[:-4],
    "without its start": lambda data: data[4:],
}
"""Damage to the bytes of the file."""


def parquet_case(rng: Random, folder: Path) -> Case:
    """Return a case of a parquet file with a missing or mistyped column, or with damaged bytes."""
    (folder / "case.yaml").write_text(TINY, encoding="utf-8")
    file = folder / "set" / rng.choice(["train-0.parquet", "set.parquet", "with space é.parquet"])
    noise(rng).save(folder / "outside.png")
    png = (folder / "outside.png").read_bytes()
    images: list = [{"bytes": png, "path": f"{number}.png"} for number in range(3)]
    columns: dict[str, list] = {"image": images, "label": [0, 1, 2]}
    path = rng.choice(["set", str(file.relative_to(folder))])
    argv = (*TRAIN, "--data.path", path, "--data.resolution", "8", "--data.image_column", "image")
    what = rng.choice(["labels", "images", "some images", "columns", "rows", "file", "bit"])
    about, names, expected, prints = what, ("data.path", "data.image_column"), "refused", ()
    if what == "labels":
        about = rng.choice(list(LABELS))
        columns["label"], expected = LABELS[about]
        names = ("conditions.label",)
    elif what == "images":
        about = rng.choice(list(NO_IMAGES))
        columns["image"] = NO_IMAGES[about]
    elif what == "some images":
        images[1] = rng.choice([None, {"bytes": png[:-200], "path": "1.png"}, {"bytes": None, "path": None}])
        expected, prints = "accepted", ("skipped 1 of 3 images: ", "1")
    elif what == "columns":
        columns = rng.choice([{}, {"label": [0, 1]}, {"imgae": images}, {"image": [images]}, {"Image": images}])
        about = f"columns {', '.join(columns)}"
    elif what == "rows":
        columns = {"image": images[:0], "label": []}
    _write_parquet(file, columns)
    if what == "file":
        about = rng.choice(list(DAMAGES))
        file.write_bytes(DAMAGES[about](file.read_bytes()))
    elif what == "bit":
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        expected = "either"
    return Case(f"{what}: {about}; {path}", argv, names, expected, prints)


def _write_parquet(file: Path, columns: dict[str, list]) -> None:
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
