"""Run folders of format 1 (until 2026-11) as format 2."""

import copy
from pathlib import Path

OBJECTIVES = {"diffusion": "ddpm", "edm": "edm", "flow": "flow"}
RUNTIME = ("mixed_precision", "channels_last", "compile")
NAMES = {"log_sigma_mean": "P_mean", "log_sigma_std": "P_std"}
FOLDERS = {"averages": "ema_snapshots", "pictures": "images"}


def migrate_model(values: dict) -> dict:
    """Return the values of a model/config.json, of either format, in format 2."""
    old = values.get("conditions")
    if not isinstance(old, dict) or isinstance(old.get("classes", {}), dict):
        return values
    conditions = {}
    if old["classes"]:
        classes = None if old["classes"] == "auto" else old["classes"]
        conditions["label"] = {"type": "label", "num_classes": classes, "class_names": old.get("class_names", [])}
    if old.get("augmentation"):
        conditions["augmentation"] = {"type": "augmentation", "width": old["augmentation"]}
    return {**values, "time": {"freq_shift": old.get("time_freq_shift", 0)}, "conditions": conditions}


def migrate_config(values: dict) -> dict:
    """Return the values of a format-1 config.yaml in format 2. Malformed sections stay, for validation to report."""
    old = copy.deepcopy(values)
    sections = {name: old.pop(name, {}) for name in OBJECTIVES}
    kind = old.get("objective", "diffusion")
    if isinstance(kind, str) and isinstance(sections.get(kind, {}), dict):
        keys = {NAMES.get(name, name): value for name, value in sections.get(kind, {}).items()}
        old["objective"] = {"type": OBJECTIVES.get(kind, kind), **keys}
    new = migrate_model(old)
    data = new.get("data")
    if isinstance(data, dict) and "label_column" in data:
        column = data.pop("label_column")
        conditions = new.get("conditions")
        if column and isinstance(conditions, dict) and isinstance(conditions.get("label"), dict):
            conditions["label"]["column"] = column
    for name in ("train", "sample"):
        if isinstance(section := new.get(name), dict):
            section["runtime"] = {key: section.pop(key) for key in RUNTIME if key in section}
    if isinstance(sample := new.get("sample"), dict):
        sample.pop("output", None)
        label = sample.pop("label", None)
        sample["conditions"] = {} if label is None else {"label": label}
    return new


def migrate_folder(folder: Path) -> None:
    """Rename the subfolders of a format-1 run; a run that is resumed is written in format 2."""
    for old, new in FOLDERS.items():
        if (folder / old).is_dir() and not (folder / new).exists():
            (folder / old).rename(folder / new)
