"""Finetuning on the built-in digits: from classes 0 to 7 to the classes 8 and 9, in a tenth of the steps.

    python benchmarks/finetune.py                    # about ten minutes on two CPU cores; continues where it stopped
    python benchmarks/finetune.py --seeds 0 1 2
    python benchmarks/finetune.py --tiny             # a rehearsal

Trains configs/digits.yaml on the digits 0 to 7, and begins with those weights on the 8s and 9s, in full and by LoRA.
Beside them, trainings from random weights on the 8s and 9s, as long and ten times as long. 1,000 samples of each are
compared with all 8s and 9s: the Fréchet distance in the 64 pixels, and the share of samples that the classifier of
`diffunet evaluate` finds in their class. The table goes to FOLDER/finetune.md.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from records import add_record_flag, append_rows, machine, mean_std, table

from diffunet.core.runtime import default_device
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.digits import digit_images, load_digits
from diffunet.evaluation.features import FeatureExtractor, choose_features
from diffunet.runs.evaluate import evaluate_denoiser, real_images
from diffunet.runs.run import Run
from diffunet.tasks.finetuning import configure
from diffunet.tasks.kinds import train

OLD, NEW = range(8), (8, 9)
STEPS = 1000
"""Of the source, and of the long training from random weights."""
FINETUNED = {
    "finetuned": (0, 1.0),
    "finetuned, learning rate / 10": (0, 0.1),
    "LoRA, rank 16": (16, 1.0),
    "LoRA, rank 4": (4, 1.0),
}
"""Rank, and factor of the default learning rate."""
RANDOM, LONG = "random weights", "random weights, longer"


def write_digits(folder: Path, classes: range | tuple[int, ...]) -> str:
    """Write the digits of some classes as a folder of each class."""
    for index, (pixels, label) in enumerate(zip(digit_images(), load_digits()[1].tolist(), strict=True)):
        if label in classes:
            file = folder / str(label) / f"{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(file)
    return str(folder)


def trained(output: Path, config: object, **sections: dict) -> Run:
    """Train to the end, unless it is done."""
    run = Run(output)
    if not (output / "done").exists():
        sections["train"] = {**sections.get("train", {}), "output": str(output)}
        run = train(config, overwrite=True, **sections)
        (output / "done").touch()
    return run


def measure(run: Run, data: str, features: FeatureExtractor, number: int, seed: int) -> dict[str, float]:
    """Return the Fréchet distance of samples, and the share of them in their class, or in a new class."""
    config = run.config()
    sampling = config.sample.model_copy(update={"num_images": number, "batch_size": 500, "seed": 1000 * seed})
    real = real_images(config, config.data.model_copy(update={"path": data}), run.folder / "model")
    evaluation = evaluate_denoiser(run, run.denoiser(), sampling, real, features)
    names = config.labels["label"].class_names
    labels = torch.arange(number) % len(names)
    expected = torch.tensor([int(name) for name in names])[labels]
    found = features.predict(evaluation.samples)
    metrics, memorization = evaluation.record["metrics"], evaluation.record["memorization"]["features"]
    return {
        "frechet_distance": metrics["frechet_distance"]["value"],
        "floor": metrics["frechet_distance"]["floor"],
        "class_accuracy": float((found == expected).double().mean()),
        "memorization": memorization["value"],
        "memorization_floor": memorization["floor"],
    }


def rows_of(seed: int, folder: Path, steps: int, number: int) -> list[dict]:
    """Train every row with a seed, and return its measurements."""
    old, new = (write_digits(folder / name, classes) for name, classes in (("old", OLD), ("new", NEW)))
    digits = load_images(DataConfig(), {}, log=lambda text: None)
    features = choose_features(None, None, digits, default_device())
    home = folder / f"seed {seed}"
    common = {"seed": seed, "checkpoint_every": 10 * steps}
    scratch = {"data": {"path": new}}
    source = trained(home / "source", "configs/digits.yaml", data={"path": old}, train=common | {"steps": steps})
    runs = {}
    for row, (rank, factor) in FINETUNED.items():
        section = {"from": str(source.folder), "lora_rank": rank}
        default = configure(None, changes={"finetune": section})[0].train.learning_rate
        settings = {"seed": seed, "learning_rate": factor * default}
        name = row.replace("/", "by")
        runs[row] = trained(home / name, {"finetune": section}, data={"path": new}, train=settings)
    for row, length in ((RANDOM, steps // 10), (LONG, steps)):
        settings = common | {"steps": length, "warmup_steps": length // 10}
        runs[row] = trained(home / row, "configs/digits.yaml", **scratch, train=settings)
    rows = []
    for row, run in runs.items():
        file = run.folder / "measured.json"
        if not file.exists():
            file.write_text(json.dumps(measure(run, new, features, number, seed)))
        parameters = sum(p.numel() for p in run.denoiser().parameters())
        rows.append({"row": row, "seed": seed, "parameters": parameters, **json.loads(file.read_text())})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings (0)")
    parser.add_argument("--number", type=int, default=1000, help="samples of each training (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--tiny", action="store_true", help="20 steps and 40 samples: to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    steps, number = (20, 40) if args.tiny else (STEPS, args.number)
    rows = [row for seed in args.seeds for row in rows_of(seed, args.folder, steps, number)]
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        cells = [mean_std([row["frechet_distance"] for row in own])]
        cells += [mean_std([100 * row[key] for row in own]) for key in ("class_accuracy", "memorization")]
        lines.append([name, str(steps if name == LONG else steps // 10), *cells, str(len(own))])
    text = table(["", "steps", "Fréchet distance", "class right, %", "memorization, %", "seeds"], lines)
    floor = f"Floors: {rows[0]['floor']:.3g} and {100 * rows[0]['memorization_floor']:.3g} % (seed {args.seeds[0]})."
    text = f"{text}\n{floor} {machine()}.\n"
    (args.folder / "finetune.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("finetune", rows)


if __name__ == "__main__":
    main()
