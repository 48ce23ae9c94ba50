"""Text to image on real captions: retrieval of the caption, and combinations of shape and skin withheld in training.

    python benchmarks/captions.py --data emoji/google --reference emoji/twitter --minutes 180
    python benchmarks/captions.py --data emoji/google --reference emoji/twitter --minutes 0.5 --number 8 --steps 2

The second is a rehearsal. DATA is an image folder with the columns text, name and skin in metadata.jsonl, such as the
emoji of `emoji-datasource`: google (Apache-2.0), and REFERENCE the same files by another hand, twitter (CC-BY-4.0).
Trains configs/captions.yaml with a small network at 32×32 pixels, without every seventh combination of a name and one
skin tone; `--encoder FOLDER` takes frozen tokens. Continues where it stopped. Writes the run, prompts.png and
captions.json to OUTPUT:

- retrieval: the share of samples whose nearest image among 1,000 of DATA, or five nearest, have their caption, by
  features of efficientnet-lite0, beside the images of REFERENCE;
- composition: shape and skin tone of samples for withheld combinations, for as many that were seen, and of real images.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

import torch
from efficientnet import efficientnet_features
from records import add_record_flag, append_rows, machine, table
from skin import TONES, skin_palette, skin_tone
from small import train_small
from torch import Tensor

from diffunet.conditions.label import LabelConfig
from diffunet.core.rng import fixed_subset
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset, load_images
from diffunet.evaluation.conditional import wilson_error
from diffunet.runs.figures import save_comparison
from diffunet.runs.run import Run

PROMPTS = [
    "grinning face",
    "smiling face with sunglasses",
    "cat face",
    "red apple",
    "slice of pizza",
    "soccer ball",
    "blue heart",
    "rocket",
    "sunflower",
    "japan flag",
    "waving hand sign, dark skin tone",
    "waving hand sign, light skin tone",
]
COLUMNS = 8
"""Samples of each prompt."""
POOL = 1000
"""Images among which the right one is searched."""
WITHHELD_EVERY = 7
"""Not a multiple of the number of tones, so that each is withheld, and no name lacks more than one."""


def read_metadata(folder: Path) -> list[dict]:
    """Return the records of an image folder, the first of each caption."""
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return list({record["text"]: record for record in reversed(records)}.values())[::-1]


def combinations(records: list[dict]) -> list[dict]:
    """Return the records with a single skin tone, by name and tone."""
    toned = [record for record in records if record["skin"] in TONES]
    return sorted(toned, key=lambda record: (record["name"], TONES.index(record["skin"])))


def write_folder(data: Path, records: list[dict], folder: Path) -> None:
    """Write an image folder with copies of these images."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        shutil.copyfile(data / record["file_name"], folder / record["file_name"])
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def images_by_caption(config: DataConfig) -> tuple[dict[str, Tensor], ImageDataset]:
    """Return uint8 images (C, H, W) by caption, and their data set."""
    images = load_images(config, {"caption": LabelConfig(column="text")}, log=lambda text: None)
    every = images.__getitems__(list(range(len(images))))
    names = images.conditions["caption"].class_names
    return {names[i]: image for i, image in zip(every["caption"].tolist(), every["image"], strict=True)}, images


def held_out_captions(images: ImageDataset) -> set[str]:
    """Return the captions of the images that the training keeps for validation."""
    _, held_out = images.split_held_out()
    names = images.conditions["caption"].class_names
    classes = held_out.__getitems__(list(range(len(held_out))))["caption"]
    return {names[index] for index in classes.tolist()}


def sample(run: Run, captions: list[str], seed: int = 0, **settings: float) -> Tensor:
    """Return one image for each caption, (N, C, H, W)."""
    conditions = {"caption": captions}
    return run.sample(conditions=conditions, num_images=len(captions), batch_size=100, seed=seed, **settings).pixels


def nearest(found: Tensor, known: Tensor) -> Tensor:
    """Return the indices of a pool with features (P, D) from the nearest to the farthest of each (N, D), (N, P).

    By the cosine of features that are standardized by those of the pool.
    """
    found, known = found.double(), known.double()
    mean, std = known.mean(0), known.std(0).clamp(min=1e-6)
    found, known = (torch.nn.functional.normalize((x - mean) / std, dim=1) for x in (found, known))
    return (found @ known.T).argsort(dim=1, descending=True)


def row(hits: Tensor) -> dict:
    """Return the share of hits, (N,) bool, with its binomial error."""
    share = float(hits.double().mean())
    return {"value": share, "error": wilson_error(share, len(hits)), "number": len(hits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a captioned folder")
    parser.add_argument("--reference", type=Path, required=True, help="the same images by another hand")
    parser.add_argument("--minutes", type=float, default=180, help="of training (%(default)s)")
    parser.add_argument("--train_steps", type=int, help="steps of training instead of minutes")
    parser.add_argument("--encoder", default="own", help="folder of a frozen text encoder (%(default)s)")
    parser.add_argument("--config", default="configs/captions.yaml", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/captions-benchmark"))
    parser.add_argument("--number", type=int, default=POOL, help="samples of each kind, at most (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="network calls for each sample (%(default)s)")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (%(default)s)")
    parser.add_argument("--train_only", action="store_true", help="without the measurements")
    add_record_flag(parser)
    args = parser.parse_args()
    records = read_metadata(args.data)
    toned = combinations(records)
    withheld = toned[::WITHHELD_EVERY]
    left_out = {record["text"] for record in withheld}
    kept = [record for record in records if record["text"] not in left_out]
    training = args.output / "data"
    write_folder(args.data, kept, training)
    data = {"path": str(training), "resolution": 32, "channels": 3}
    caption = {"type": "text", "column": "text", "encoder": args.encoder, "max_length": 48}  # of any caption
    length = {"steps": args.train_steps} if args.train_steps else {"minutes": args.minutes}
    run = train_small(args.config, args.output / "run", length, args.seed, data=data, conditions={"caption": caption})
    if args.train_only:
        return
    draw = partial(sample, run, guidance_scale=args.guidance_scale, steps=args.steps)
    columns = torch.stack([draw(PROMPTS, 100 * seed) for seed in range(COLUMNS)], dim=1)
    save_comparison(args.output / "prompts.png", [(*row, 8) for row in zip(PROMPTS, columns, strict=True)])
    real, trained = images_by_caption(DataConfig(**data))
    real |= images_by_caption(DataConfig(**data | {"path": str(args.data)}))[0]
    other, _ = images_by_caption(DataConfig(**data | {"path": str(args.reference)}))
    features = efficientnet_features()
    validation = held_out_captions(trained)
    measured = {**length, "steps": run.config().train.steps, "encoder": args.encoder}
    measured |= {"guidance_scale": args.guidance_scale, "features": features.name, "weights_sha256": features.weights}
    found = retrieval(draw, real, other, validation, left_out, args.number, features)
    shapes = composition(draw, toned, real, other, validation, left_out, args.number, features)
    measured |= {"retrieval": found, "composition": shapes}
    (args.output / "captions.json").write_text(json.dumps(measured, indent=2))
    print(f"{machine()}, {measured['steps']:,} steps. Percent.\n")
    for name, groups in (("retrieval", found), ("composition", shapes)):
        heads = list(next(iter(groups.values())))
        cells = ([group, *(percent(rows[head]) for head in heads)] for group, rows in groups.items())
        print(table([name, *heads], cells))
    if args.record:
        append_rows("captions", [measured])


def percent(found: dict) -> str:
    return f"{100 * found['value']:.1f} ± {100 * found['error']:.1f} ({found['number']})"


def retrieval(draw, real, other, validation, left_out, number, features) -> dict[str, dict]:
    """Return top-1 and top-5 of samples for captions of training and held out, and of images of another hand."""
    captions = sorted(real)
    held_out = [caption for caption in captions if caption in validation | left_out][:number]
    rest = [caption for caption in captions if caption not in validation | left_out]
    seen = [rest[index] for index in fixed_subset(len(rest), POOL - len(held_out)).tolist()]
    pool = features(torch.stack([real[caption] for caption in held_out + seen]))
    place = {caption: index for index, caption in enumerate(held_out + seen)}
    groups = {"training captions": (seen[:number], draw), "held-out captions": (held_out, draw)}
    groups["another hand"] = ((held_out + seen)[-number:], lambda chosen: torch.stack([other[c] for c in chosen]))
    rows = {}
    for group, (chosen, images) in groups.items():
        order = nearest(features(images(chosen)), pool)
        own = order == torch.tensor([place[caption] for caption in chosen])[:, None]
        rows[group] = {f"top-{rank}": row(own[:, :rank].any(1)) for rank in (1, 5)}
    return rows


def composition(draw, toned, real, other, validation, left_out, number, features) -> dict[str, dict]:
    """Return how often shape and skin tone are right, for combinations withheld and seen, and on real images.

    The shape is right if the nearest of all images with a single tone has the name, whatever its tone.
    """
    pool = features(torch.stack([real[record["text"]] for record in toned]))
    names = [record["name"] for record in toned]
    palette = skin_palette({record["text"]: record["skin"] for record in toned if record["text"] not in left_out}, real)
    withheld = [record for record in toned if record["text"] in left_out][:number]
    seen = [record for record in toned if record["text"] not in left_out | validation][3::6][: len(withheld)]

    def copies(captions: list[str]) -> Tensor:
        return torch.stack([real[caption] for caption in captions])

    def others(captions: list[str]) -> Tensor:
        return torch.stack([other[caption] for caption in captions])

    rows = {}
    for group, chosen, images in (
        ("withheld combinations", withheld, draw),
        ("seen combinations", seen, draw),
        ("real images", withheld, copies),
        ("another hand", withheld, others),
    ):
        pixels = images([record["text"] for record in chosen])
        first = nearest(features(pixels), pool)[:, 0].tolist()
        shape = torch.tensor([names[i] == record["name"] for i, record in zip(first, chosen, strict=True)])
        tone = skin_tone(pixels, palette)
        tone = torch.tensor([TONES[i] == record["skin"] for i, record in zip(tone.tolist(), chosen, strict=True)])
        rows[group] = {"shape": row(shape), "skin tone": row(tone), "both": row(shape & tone)}
    return rows


if __name__ == "__main__":
    main()
