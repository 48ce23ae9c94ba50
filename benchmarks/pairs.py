"""Image to image on held-out pairs: to color, to translate, to upscale, beside simple baselines.

    python benchmarks/pairs.py --config translate --data openmoji                              # lines to color
    python benchmarks/pairs.py --config translate --data emoji/twitter --source emoji/google   # another hand
    python benchmarks/pairs.py --config super-resolution --data cifar10/train.parquet          # 8×8 to 32×32
    python benchmarks/pairs.py --config colorize --data FOLDER --minutes 0.5 --number 4 --steps 2   # a rehearsal

DATA is an image folder, parquet, or an image folder whose metadata.jsonl has the columns source and target, such as
OpenMoji's black and color glyphs (CC-BY-SA-4.0); with `--source`, a folder of the same file names. The emoji of
`emoji-datasource` are Google's (Apache-2.0) and Twitter's (CC-BY-4.0), CIFAR-10 is Krizhevsky's (research). Trains a
shipped config at 32×32 without a tenth of the images, at most 1,000, which nothing is chosen by. Continues where it
stopped. Writes the run, pairs.png and pairs.json to OUTPUT. Of up to `--number` held-out images:

- PSNR, SSIM and color distance (CIE 1976 delta E, D65) of one sample, of the mean of eight, of one sample after
  `agree`, of the source itself (in bicubic interpolation where it is smaller), and of the mean training image;
- the kernel distance (KID) to the true images in features of efficientnet-lite0;
- coverage of the truth among eight samples, diversity, retrieval, and the agreement with the source before and after
  `agree`.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet import efficientnet_features
from records import add_record_flag, append_rows, machine, table
from small import train_small
from torch import Tensor

from diffunet.conditions.base import Value
from diffunet.core.rng import fixed_subset
from diffunet.data.dataset import load_images
from diffunet.data.pixels import normalize, to_unit
from diffunet.evaluation.conditional import Measurement, agreement, evaluate_conditional
from diffunet.evaluation.features import FeatureExtractor
from diffunet.evaluation.fidelity import psnr, ssim
from diffunet.evaluation.metrics import jackknife_error, kernel_distance
from diffunet.runs.examples import examples_of
from diffunet.runs.figures import save_comparison
from diffunet.runs.run import Run
from diffunet.runs.samples import encode_image

REPEATS = 8
"""Samples for each source."""
SHOWN = 12
"""Pairs in the picture."""
AVERAGED = 2000
"""Training images, at most, in the mean one."""
XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""Of linear sRGB (IEC 61966-2-1)."""
WHITE = (0.9505, 1.0, 1.0890)
"""XYZ of D65."""


def paired_folder(data: Path, source: Path | None, folder: Path) -> Path:
    """Return an image folder with the column source: DATA itself, or a copy of its pairs."""
    metadata = data / "metadata.jsonl"
    records = [json.loads(line) for line in metadata.read_text().splitlines()] if metadata.exists() else []
    if source:
        pairs = [(data / record["file_name"], source / record["file_name"]) for record in records]
        pairs = [pair for pair in pairs if pair[1].exists()]
    elif records and {"source", "target"} <= records[0].keys():
        pairs = [(data / record["target"], data / record["source"]) for record in records]
    else:
        return data
    lines = []
    for part in ("target", "source"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for target, origin in pairs:
        shutil.copyfile(target, folder / "target" / target.name)
        shutil.copyfile(origin, folder / "source" / origin.name)
        lines.append({"file_name": f"target/{target.name}", "source_file_name": f"source/{origin.name}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def lab(pixels: Tensor) -> Tensor:
    """Return CIE L*a*b* of sRGB images (N, 3, H, W) from 0 to 1."""
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    ratio = torch.einsum("ij,njhw->nihw", torch.tensor(XYZ), linear) / torch.tensor(WHITE)[:, None, None]
    x, y, z = torch.where(
        ratio > (6 / 29) ** 3, ratio.clamp(min=1e-9) ** (1 / 3), ratio * (29 / 6) ** 2 / 3 + 4 / 29
    ).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def color_distance(images: Tensor, truth: Tensor) -> Tensor:
    """Return the mean distance in L*a*b* of each image, (N,)."""
    return (lab(images) - lab(truth)).norm(dim=1).mean((1, 2))


def comparison(images: Tensor, truth: Tensor, features: FeatureExtractor, real: Tensor) -> dict[str, dict]:
    """Return the metrics of one image (N, C, H, W), from 0 to 1, for each true one, whose features are `real`."""
    images, truth = (x.expand(-1, 3, -1, -1) for x in (images, truth))
    metrics = {"PSNR": psnr(images, truth).clamp(max=100), "SSIM": ssim(images, truth)}
    metrics["color distance"] = color_distance(images, truth)
    rows = {name: {"value": float(v.mean()), "error": float(v.std() / len(v) ** 0.5)} for name, v in metrics.items()}
    found = features((255 * images).round().to(torch.uint8))
    error = jackknife_error(kernel_distance, found, real, min(10, len(found) // 2))
    rows["kernel distance"] = {"value": kernel_distance(found, real), "error": float(error)}
    return rows


def upsampled(measurements: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Return sources (N, c, h, w) in [-1, 1] as images from 0 to 1, in bicubic interpolation where they are smaller."""
    images = (measurements + 1) / 2
    if images.shape[1] in (2, 4):  # transparent, on white
        images = images[:, :-1] * images[:, -1:] + 1 - images[:, -1:]
    images = images.expand(-1, channels, -1, -1)
    return images if images.shape[2:] == size else F.interpolate(images, size, mode="bicubic").clamp(0, 1)


def measure_run(run: Run, number: int, steps: int, features: FeatureExtractor, output: Path) -> dict:
    """Return the metrics of samples for the sources of held-out images; write pairs.png."""
    config = run.config()
    (name, condition), *_ = config.inputs.items()
    images = load_images(config.data, config.inputs, run.folder / "model", log=lambda text: None)
    trained, held_out = images.split_held_out()
    truth, words = examples_of(held_out, fixed_subset(len(held_out), number).tolist())
    (output / "sources").mkdir(exist_ok=True)
    files = []
    for index, pixels in enumerate(words[name]):
        suffix, content = encode_image(pixels, condition.bit_depth, condition.value_range)
        files.append(str(output / "sources" / f"{index:05d}{suffix}"))
        Path(files[-1]).write_bytes(content)
    settings = {"conditions": {name: files}, "batch_size": 100, "steps": steps}
    samples = run.sample(num_images=REPEATS * len(truth), **settings).pixels
    samples = samples.unflatten(0, (REPEATS, len(truth))).transpose(0, 1)
    values = condition.parse(name, files, run.folder / "model", config.data.size)
    sources = torch.stack([value.measurement for value in values])
    depth, real = config.data.bit_depth, to_unit(truth, config.data.bit_depth)
    some = trained.__getitems__(fixed_subset(len(trained), AVERAGED).tolist())["image"]
    mean = to_unit(some, depth).mean(0, keepdim=True)
    methods = {"one sample": to_unit(samples[:, 0], depth), "mean of eight": to_unit(samples, depth).mean(1)}
    record, measured = {}, {}
    if condition.by:
        agreed = run.sample(num_images=len(truth), agree=True, **settings).pixels
        methods["one sample, agreeing"] = to_unit(agreed, depth)
        measured[name] = _measurement(condition, values, sources, truth, samples, depth)
        record["agreement after"] = agreement(
            _measurement(condition, values, sources, truth, agreed[:, None], depth), depth
        )
    small = sources.shape[2:] != truth.shape[2:]
    methods["bicubic" if small else "source"] = upsampled(sources, truth.shape[1], config.data.size)
    methods["mean training image"] = mean.expand_as(real)
    known = features(truth)
    record |= evaluate_conditional(truth, samples, depth, {"image"}, features, measured)
    rows = [("source", torch.stack(words[name][:SHOWN]), condition.bit_depth)]
    rows += [("sample", samples[:SHOWN, index], depth) for index in range(2)]
    save_comparison(output / "pairs.png", [*rows, ("truth", truth[:SHOWN], depth)])
    return {
        "held_out": len(truth),
        "methods": {method: comparison(x, real, features, known) for method, x in methods.items()},
        "samples": record,
    }


def _measurement(
    condition, values: list[Value], sources: Tensor, truth: Tensor, samples: Tensor, depth: int
) -> Measurement:
    """Return what the sources, the truth (N, C, H, W) and the samples (N, k, C, H, W) measure."""
    parts = [condition.measure(normalize(x, depth), values) for x in (truth, *samples.unbind(1))]
    return Measurement(sources[:, : parts[0].shape[1]], parts[0], torch.stack(parts[1:], dim=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="colorize, super-resolution, translate, or a file")
    parser.add_argument("--data", type=Path, required=True, help="a folder or parquet of images or pairs")
    parser.add_argument("--source", type=Path, help="a folder of sources with the same file names")
    parser.add_argument("--minutes", type=float, default=60, help="of training (%(default)s)")
    parser.add_argument("--number", type=int, default=200, help="held-out images, at most (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="network calls for each sample (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/pairs-benchmark"))
    parser.add_argument("--seed", type=int, default=0, help="of the training (%(default)s)")
    add_record_flag(parser)
    args = parser.parse_args()
    config = args.config if args.config.endswith(".yaml") else f"configs/{args.config}.yaml"
    folder = paired_folder(args.data, args.source, args.output / "data")
    data = {"path": str(folder), "resolution": 32, "channels": 3, "held_out": 0.1, "random_flip": False}
    run = train_small(config, args.output / "run", {"minutes": args.minutes}, args.seed, data=data)
    features = efficientnet_features()
    record = {"config": args.config, "data": folder.name, "minutes": args.minutes, "steps": run.config().train.steps}
    record |= {"features": features.name, "weights_sha256": features.weights}
    record |= measure_run(run, args.number, args.steps, features, args.output)
    (args.output / "pairs.json").write_text(json.dumps(record, indent=2))
    print(
        f"{machine()}, {record['steps']:,} steps in {args.minutes:g} minutes, {record['held_out']} held-out images.\n"
    )
    methods = record["methods"]
    heads = list(methods["one sample"])
    print(table(["", *heads], ([name, *(_cell(row[head]) for head in heads)] for name, row in methods.items())))
    rows = ([name, _cell(row), f"{row['reference']:.3g}"] for name, row in record["samples"].items())
    print(table(["of samples", "value", "reference"], rows))
    if args.record:
        append_rows("pairs", [record])


def _cell(row: dict) -> str:
    return f"{row['value']:.4g} ± {row['error']:.2g}"


if __name__ == "__main__":
    main()
