"""Obedience to captions of the built-in digits, word by word, for combinations of words seen and withheld in training.

    python benchmarks/text_digits.py                 # minutes on two CPU cores; continues where it stopped
    python benchmarks/text_digits.py --tiny          # a rehearsal

Trains configs/text-digits.yaml on the digits without every eighth of the 90 captions (class × weight × slant), so that
each word is seen, and each class lacks a combination. Then samples every caption and measures the samples: the class by
the classifier of `diffunet evaluate`, weight and slant as they were measured for the captions. *Chance* is sampling
without a caption, compared with the same captions. Errors are binomial. Other flags are passed on to train.py.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from PIL import Image
from records import add_record_flag, append_rows, machine, run_command, table
from torch import Tensor

from diffunet.conditions.label import LabelConfig
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.digits import (
    CAPTIONS,
    CLASSES,
    SLANTS,
    WEIGHTS,
    digit_images,
    digit_table,
    measure,
    words_of,
)
from diffunet.evaluation.features import FeatureExtractor, choose_features
from diffunet.runs.run import load_run

WITHHELD = list(CAPTIONS)[::8]
"""Captions without examples in training."""
WORDS = {"class": CLASSES, "weight": WEIGHTS, "slant": SLANTS}
TINY = ["--train.steps", "20"]


def write_digits(folder: Path) -> None:
    """Write the digits with captions that are not withheld as an image folder."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, (pixels, caption) in enumerate(zip(digit_images(), digit_table().values("caption"), strict=True)):
        if caption not in WITHHELD:
            records.append({"file_name": f"{index:04d}.png", "caption": caption})
            Image.fromarray(pixels[0].numpy()).save(folder / records[-1]["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def train(folder: Path, digits: Path, config: str, seed: int, flags: list[str]) -> None:
    """Train to the end, resuming if possible."""
    words = ["train", "--config", config, "--data.path", str(digits), "--train.output", str(folder)]
    words += ["--train.seed", str(seed), *flags]
    if (folder / "checkpoints").exists():
        words = ["train", "--resume", str(folder)]
    run_command(words)


def obey(pixels: Tensor, captions: list[str], features: FeatureExtractor) -> Tensor:
    """Return whether each image has the class, the weight and the slant of its caption, (N, 3) bool."""
    digits, weights, slants = zip(*map(CAPTIONS.get, captions), strict=True)
    words = words_of(**measure(pixels / 255), classes=torch.tensor(digits))
    right = [features.predict(pixels) == torch.tensor(digits)]
    for place, requested in enumerate((weights, slants)):
        right.append(torch.tensor([pair[place] == word for pair, word in zip(words, requested, strict=True)]))
    return torch.stack(right, dim=1)


def count(captions: list[str], obeyed: Tensor) -> dict[str, tuple[int, int]]:
    """Return how many images obey all words of their caption, a kind of word, and each word, of how many."""
    requested = [CAPTIONS[caption] for caption in captions]
    hits = {"all words": obeyed.all(1)}
    for place, (kind, known) in enumerate(WORDS.items()):
        hits[kind] = obeyed[:, place]
        for index, word in enumerate(known):
            value = index if kind == "class" else word
            hits[word] = obeyed[torch.tensor([words[place] == value for words in requested]), place]
    return {name: (int(found.sum()), len(found)) for name, found in hits.items()}


def measure_run(folder: Path, per_caption: int, scale: float | None, features: FeatureExtractor) -> dict:
    """Return the counts of samples for captions seen and withheld, and of unconditional samples."""
    run, number = load_run(folder), per_caption * len(CAPTIONS)
    settings = {"num_images": number, "batch_size": 300} | ({} if scale is None else {"guidance_scale": scale})
    captions = list(CAPTIONS)
    samples = run.sample(conditions={"caption": captions}, **settings)
    chance = run.sample(conditions={"caption": "none"}, **settings | {"seed": number})
    requested = samples.conditions["caption"]
    groups = {
        "seen": (samples.pixels, [caption not in WITHHELD for caption in requested]),
        "withheld": (samples.pixels, [caption in WITHHELD for caption in requested]),
        "chance": (chance.pixels, [True] * number),
    }
    counts = {}
    for group, (pixels, chosen) in groups.items():
        own = [caption for caption, use in zip(requested, chosen, strict=True) if use]
        counts[group] = count(own, obey(pixels[torch.tensor(chosen)], own, features))
    return counts


def real_digits(features: FeatureExtractor) -> dict[str, tuple[int, int]]:
    """Return the counts of real digits on which the classifier was not trained."""
    conditions = {"caption": LabelConfig()}
    _, held_out = load_images(DataConfig(), conditions, log=lambda text: None).split_held_out()
    batch = held_out.__getitems__(list(range(len(held_out))))
    names = held_out.conditions["caption"].class_names
    captions = [names[index] for index in batch["caption"].tolist()]
    return count(captions, obey(batch["image"], captions, features))


def percent(counts: list[tuple[int, int]]) -> str:
    """Return the share of hits in percent, with its binomial standard error."""
    hits, number = (sum(values) for values in zip(*counts, strict=True))
    if not number:
        return ""
    share = hits / number
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / number):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/text-digits.yaml", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings, pooled (0)")
    parser.add_argument("--per_caption", type=int, default=20, help="samples of each caption (%(default)s)")
    parser.add_argument("--guidance_scale", type=float, help="that of the config unless set")
    parser.add_argument("--folder", type=Path, default=Path("runs/text-digits-benchmark"))
    parser.add_argument("--tiny", action="store_true", help="20 steps and 2 samples a caption, to rehearse")
    add_record_flag(parser)
    args, flags = parser.parse_known_args()
    if args.tiny:
        args.per_caption, flags = 2, [*flags, *TINY]
    write_digits(args.folder / "digits")
    features = choose_features(None, None, load_images(DataConfig(), log=lambda text: None), torch.device("cpu"))
    found = []
    for seed in args.seeds:
        run = args.folder / f"seed {seed}"
        train(run, args.folder / "digits", args.config, seed, flags)
        found.append(measure_run(run, args.per_caption, args.guidance_scale, features))
    real = real_digits(features)
    rows = []
    for name in real:
        groups = [[counts[group][name] for counts in found] for group in ("seen", "withheld", "chance")]
        rows.append([name, *map(percent, groups), percent([real[name]])])
    combinations = f"{len(CAPTIONS) - len(WITHHELD)} combinations seen, {len(WITHHELD)} withheld"
    print(f"{machine()}. {combinations}, {args.per_caption} samples each, training seeds {args.seeds}. Percent.\n")
    print(table(["", "seen", "withheld", "chance", "real"], rows))
    if args.record:
        about = {"guidance_scale": args.guidance_scale, "per_caption": args.per_caption, "real": real}
        append_rows("text-digits", [about | {"seed": s, **c} for s, c in zip(args.seeds, found, strict=True)])


if __name__ == "__main__":
    main()
