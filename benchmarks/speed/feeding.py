"""Images per second that arrive as batches on the device, from a folder of JPEGs: diffunet, and diffusers' example.

    python benchmarks/speed/feeding.py --parquet CIFAR10.parquet                  its first 10,000 images as JPEGs
    python benchmarks/speed/feeding.py --data FOLDER

This compares reading memory with decoding: the example's loader (examples/unconditional_image_generation) decodes each
image in every epoch; diffunet decodes once and keeps the images, if they fit into data.memory_budget, as a few lines
around any loader could. Both flip, scale to [-1, 1] and shuffle. An epoch each, in turn. Not counted are the first
epoch of the example, in which `datasets` opens its files, and diffunet's decoding, which has a row of its own.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from report import add_record_flag, append_rows, header, table
from timing import format_median

from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.training.benchmark import loader_throughput

RESOLUTION, BATCH = 32, 128


def write_jpegs(parquet: Path, number: int, folder: Path) -> None:
    import datasets

    first = f"train[:{number}]"
    rows = datasets.load_dataset("parquet", data_files=str(parquet), split=first, cache_dir=str(folder / "cache"))
    column = next(name for name, feature in rows.features.items() if isinstance(feature, datasets.Image))
    (folder / "jpegs").mkdir()
    for place, row in enumerate(rows):
        row[column].save(folder / "jpegs" / f"{place:05d}.jpg", quality=95)


def example_loader(folder: Path, cache: Path, workers: int, device: torch.device) -> Callable[[], int]:
    """Return a function that runs an epoch of the example's loader, with its transforms."""
    import datasets
    from torchvision import transforms

    augmentations = transforms.Compose(
        [
            transforms.Resize(RESOLUTION, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(RESOLUTION),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache), split="train")
    rows.set_transform(lambda examples: {"input": [augmentations(p.convert("RGB")) for p in examples["image"]]})
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True, num_workers=workers)

    def epoch() -> int:
        return sum(len(batch["input"].to(device)) for batch in loader)

    return epoch


def rates(folder: Path, cache: Path, rounds: int, device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the images per second of each loader in each round."""
    loaders = {f"diffusers' example, {n} workers": example_loader(folder, cache, n, device) for n in (0, 2)}
    for epoch in loaders.values():
        epoch()
    started = perf_counter()
    config = DataConfig(path=str(folder), resolution=RESOLUTION, random_flip=True)
    images = load_images(config, log=lambda text: None).to(device)
    decoding = len(images) / (perf_counter() - started)
    found = {name: [] for name in [*loaders, "diffunet"]}
    for _ in range(rounds):
        for name, epoch in loaders.items():
            started = perf_counter()
            found[name].append(epoch() / (perf_counter() - started))
        found["diffunet"].append(loader_throughput(images, BATCH, device, 1.0))
    yield from ((name, np.array(values)) for name, values in found.items())
    yield "diffunet, opening and decoding once", np.array([decoding])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a folder of images")
    source.add_argument("--parquet", type=Path, help="a parquet file whose first images are written as JPEGs")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a file for the report")
    add_record_flag(parser)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as scratch:
        folder = args.data
        if args.parquet:
            write_jpegs(args.parquet, args.number, Path(scratch))
            folder = Path(scratch) / "jpegs"
        found = dict(rates(folder, Path(scratch) / "cache", args.rounds, device))
    example = found["diffusers' example, 2 workers"]
    rows = [
        [name, format_median(rate, ",.0f"), format_median(rate / example, ".1f") if len(rate) == len(example) else ""]
        for name, rate in found.items()
    ]
    heads = ["", "images/s", "× the example with 2 workers"]
    report = f"# Feeding\n\n{header(device)}\n{__doc__.split(chr(10) * 2)[-1]}\n{table(heads, rows)}"
    print(report)
    if args.output:
        args.output.write_text(report, encoding="utf-8")
    if args.record:
        append_rows("feeding", [{"name": name, "images_per_second": rate.tolist()} for name, rate in found.items()])


if __name__ == "__main__":
    main()
