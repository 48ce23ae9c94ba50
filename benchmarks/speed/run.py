"""Speed and memory of one network in diffunet and in its peers, as shares of what this machine can do.

    python benchmarks/speed/run.py                                          # eager: everybody as shipped, and at best
    python benchmarks/speed/run.py --compile --memory                       # the whole report
    python benchmarks/speed/run.py --tiny                                   # a rehearsal
    python benchmarks/speed/run.py --batch_sizes 1 512 --compile --memory --peak 790            # an H200

Peers: pip install monai denoising-diffusion-pytorch. All rows of a table are in memory together: about 0.6 GB for each
row of training, 7 GB in all without --compile and 16 with it; --contenders takes fewer. The report is printed part by
part, and written to --output as far as it is.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from calls import PARTS, Convolution, alone, capabilities, compile_seconds, peak_memory, precisions
from contenders import CHECKPOINTED, CONTENDERS, EVERYONE, FULL, PLAIN, STEPS, TINY, Setting, Shape
from timing import WARM_UP, interleaved, shown
from torch.utils.flop_counter import FlopCounterMode

DRAWN = 16
"""ImageDataset to draw at once, at most."""
MEMORY_REPEATS = 3
"""New processes for each number of bytes, at most; on a GPU one, which knows exactly."""
PACKAGES = ("torch", "diffusers", "monai", "denoising-diffusion-pytorch", "ema-pytorch")

READING = """All rows of a table are timed in turn, each once in every round. × is the median of the rounds' own
ratios of GFLOP/s, which for the same network is one of speed; the ceiling is the fastest 3×3 convolution in the row's
precision, timed again in the same rounds. In brackets: where the median lies with 95 %, by order statistics (with fewer
than six rounds: all values)."""
WORDS = {
    "networks": """DDPM's network for CIFAR-10 without dropout, as each library writes it. denoising-diffusion-pytorch
has no words for it, so lucidrains is the nearest of its own: compare its GFLOP/s, not its images/s. All are counted by
torch's FlopCounterMode, a multiplication and its addition as two; a training step is three forward passes.""",
    "forward": "One network call, without gradient.",
    "training": """Loss, gradient, clipping, optimiser and average, as each one's own people do it: diffunet its
objective, fused AdamW and `Average`; diffusers its example's, with AdamW and EMAModel, and MONAI the same; lucidrains
GaussianDiffusion, Adam, and EMA at every tenth step. Fused: the optimiser fused, the average with foreach. diffunet is
always so: what its rows with and without differ by is noise.""",
    "sampling": f"{STEPS} steps of DDIM from new noise: diffunet's `sample`, and `DDIMPipeline`.",
    "levers": "diffusers as shipped, then the levers one on top of the other.",
    "memory": """Peak of two steps as shipped, each in a new process: of the whole process on a CPU, of the tensors on a
GPU. What each picture takes is the difference between the two batches.""",
    "checkpointing": "At all levels. GFLOP/s do not count what is computed twice.",
    "compile": """What the first call takes longer than the second (fp32, contiguous): with an empty cache, and in a new
process with the cache that this left. One measurement each.""",
}


# ── the machine ───────────────────────────────────────────────────────────────────────────────────


def machine(device: torch.device) -> str:
    """What was measured, where, and by which words."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        name = capabilities().get("cpu_name", platform.machine())
        where = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        where += f", {torch.backends.cpu.get_cpu_capability()}"
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    versions = [f"{name} {installed(name)}" for name in PACKAGES]
    lines = [where, ", ".join([*versions, f"diffunet {commit.stdout.strip()}"])]
    if "bf16" not in precisions(device):
        lines.append("No bf16 in this hardware: it would be slower than fp32, and is left out")
    words = [Path(word).name if number == 0 else word for number, word in enumerate(sys.argv)]
    return ".\n".join(lines) + f".\n\n    python benchmarks/speed/{' '.join(words)}\n"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


# ── the parts of the report ───────────────────────────────────────────────────────────────────────


@dataclass
class Bench:
    """What all parts of a report share."""

    shape: Shape
    device: torch.device
    rounds: int
    names: list[str]
    peak: float | None
    gflop: dict[str, float] = field(default_factory=dict)
    """Of a network call for one picture."""
    ceilings: dict[str, Convolution] = field(default_factory=dict)
    """The fastest convolution in each precision."""

    def networks(self) -> str:
        rows = []
        for name in self.names:
            with torch.device("meta"):
                network = CONTENDERS[name].build(self.shape).eval()
                x, t = torch.empty(1, 3, self.shape.side, self.shape.side), torch.empty(1, dtype=torch.long)
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    network(x, t)
            self.gflop[name] = counter.get_total_flops() / 1e9
            if name == "diffunet":
                self.gflop[CHECKPOINTED] = self.gflop[name]
            parameters = sum(p.numel() for p in network.parameters())
            rows.append([name, type(network).__name__, f"{parameters:,}", f"{self.gflop[name]:.4f}"])
        return table(["", "class", "parameters", "GFLOP, forward, one picture"], rows)

    def peak_conv_flops(self, batch: int) -> str:
        first, second, *_ = self.shape.widths
        places = [(first, self.shape.side), (second, self.shape.side // 2)]
        settings = [Setting(p, channels_last=last) for p in precisions(self.device) for last in (False, True)]
        kinds = [Convolution(*place, setting) for place, setting in product(places, settings)]
        seconds = interleaved({kind: kind.call(batch, self.device) for kind in kinds}, self.rounds)
        speeds = {kind: kind.gflop(batch) / seconds[kind] for kind in kinds}
        for kind in sorted(kinds, key=lambda kind: np.median(speeds[kind])):
            self.ceilings[kind.setting.precision] = kind
        rows = [[str(kind), kind.setting.precision, shown(speeds[kind], ",.0f")] for kind in kinds]
        return table(["3×3 convolution", "precision", "GFLOP/s"], rows)

    def settings(self, name: str, part: str, modes: tuple[str | None, ...]) -> list[Setting]:
        """As shipped, and everything from which a best may come."""
        used = [precision for precision in ("fp32", "bf16") if precision in precisions(self.device)]
        fused = part == "training"
        several = product(used, modes, (False, True))
        return [EVERYONE[name].shipped, *(Setting(p, last, mode, fused) for p, mode, last in several)]

    def levers(self, part: str, modes: tuple[str | None, ...]) -> list[Setting]:
        """One lever after the other, each on top of those before it."""
        used = [p for p in ("strict fp32", "tf32", "bf16") if p in precisions(self.device)] or ["fp32"]
        rungs = [Setting(precision, fused=part == "training") for precision in used]
        rungs += [replace(rungs[-1], channels_last=True, compiled=mode) for mode in modes]
        if self.device.type == "cuda" and "default" in modes and part != "training":
            rungs.append(replace(rungs[-1], compiled="reduce-overhead"))
        return rungs

    def compare(self, part: str, batch: int, asked: list[tuple[str, Setting]]) -> str:
        """All of them in turn, and with them the convolutions that are the ceilings."""
        make, network_calls = PARTS[part]
        calls, refused = {}, []
        for name, setting in dict.fromkeys(asked):
            try:
                call = make(name, setting, self.shape, batch, self.device)
                for _ in range(WARM_UP[self.device.type]):
                    call()
                calls[name, setting] = call
            except Exception as error:                         # one that cannot must not take the others' table away
                reason = (str(error).strip().splitlines() or [""])[0]
                refused.append(f"{name}, {setting}: {type(error).__name__}: {reason}.")
        gflop = {row: self.gflop[row[0]] * network_calls * batch for row in calls}
        ceilings = {self.ceilings[setting.precision] for _, setting in calls}
        seconds = interleaved(calls | {kind: kind.call(batch, self.device) for kind in ceilings}, self.rounds)
        speed = {row: gflop[row] / seconds[row] for row in calls}
        ceiling = {kind.setting.precision: kind.gflop(batch) / seconds[kind] for kind in ceilings}
        shipped = speed["diffusers", PLAIN]
        best = max((row for row in calls if row[0] == "diffusers"), key=lambda row: np.median(speed[row]))
        def words(name: str, setting: Setting) -> str:
            shipped_so = "as shipped: " * (setting == EVERYONE[name].shipped)
            return f"{shipped_so}{setting}{'; its best' * ((name, setting) == best)}"

        rows = [
            [
                name,
                words(name, setting),
                f"{1000 * np.median(seconds[name, setting]):,.1f}",
                f"{np.median(batch / seconds[name, setting]):,.2f}",
                f"{np.median(here):,.0f}",
                shown(here / shipped),
                shown(here / speed[best]),
                shown(100 * here / ceiling[setting.precision], ".0f"),
                *([shown(here / self.peak / 10, ".1f")] if self.peak else []),
            ]
            for (name, setting), here in speed.items()
        ]
        heads = ["", "setting", "ms", "images/s", "GFLOP/s", "× diffusers as shipped", "× diffusers at its best"]
        heads += ["% of the ceiling", *([f"% of {self.peak:g} TFLOP/s"] if self.peak else [])]
        return table(heads, rows) + "".join(f"\nLeft out: {line}\n" for line in refused)

    def compile_times(self, batch: int) -> str:
        """Each in two new processes, of which the second finds the first one's cache."""
        rows = []
        for name, part in product(self.names, ("forward", "training")):
            with TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                took = [alone(compile_seconds, part, name, self.shape, batch, self.device) for _ in range(2)]
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            rows.append([name, part, *(f"{seconds:.0f}" for seconds in took)])
        return table(["", "", "s, first time", "s, from the cache"], rows)

    def memory(self, batch: int) -> str:
        """Of training, as shipped: what a picture more takes, from two batch sizes."""
        sizes = (batch // 2, batch)
        repeats = range(1 if self.device.type == "cuda" else min(self.rounds, MEMORY_REPEATS))
        peaks = {
            name: np.array(
                [[alone(peak_memory, name, self.shape, size, self.device) for size in sizes] for _ in repeats]
            )
            for name in [*self.names, CHECKPOINTED]
        }
        each = {name: (peak[:, 1] - peak[:, 0]) / (sizes[1] - sizes[0]) for name, peak in peaks.items()}
        rows = [
            [
                name,
                *(shown(peak[:, column] / 1e9) for column in range(2)),
                shown(each[name] / 1e6, ".1f"),
                shown(each[name] / each["diffusers"]),
            ]
            for name, peak in peaks.items()
        ]
        heads = ["", *(f"GB, batch {size}" for size in sizes), "MB, each image", "× diffusers"]
        return table(heads, rows)


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [heads, ["---"] * len(heads), *rows])


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--rows", nargs="*", choices=[*PARTS, "levers"], default=[*PARTS, *(["levers"] if cuda else [])])
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="diffusers is always one")
    add("--batch_sizes", type=int, nargs="+", help="all for the forward pass, the greatest for training (1 16)")
    add("--rounds", type=int, help="how often each is timed; six give 95 %% intervals (9)")
    add("--compile", action="store_true", help="also torch.compile, which takes minutes for each row, and its time")
    add("--memory", action="store_true", help="also the memory of training, and what gradient checkpointing changes")
    add("--peak", type=float, help="TFLOP/s that the machine has on paper: a column more")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="(%(default)s)")
    add("--tiny", action="store_true", help="a tiny network, to measure_step_time")
    add("--output", type=Path, help="a file for the report, besides")
    asked = parser.parse_args()
    batches = asked.batch_sizes or ([1, 4] if asked.tiny else [1, 16])
    batch, modes = max(batches), (None, "default") if asked.compile else (None,)
    bench = Bench(
        shape=TINY if asked.tiny else FULL,
        device=asked.device,
        rounds=asked.rounds or (3 if asked.tiny else 9),
        names=[name for name in CONTENDERS if name in {*asked.contenders, "diffusers"}],
        peak=asked.peak,
    )
    torch._dynamo.config.recompile_limit = 1000                # all networks are compiled as one piece of code
    report = []

    def say(text: str) -> None:
        print(text, flush=True)
        report.append(text)
        if asked.output:
            asked.output.write_text("\n".join(report) + "\n", encoding="utf-8")

    def part(title: str, words: str | None, rows: str) -> None:
        say("\n\n".join([f"## {title}", *([WORDS[words]] if words else []), rows]))
        torch._dynamo.reset()                                  # networks that are no longer needed
        gc.collect()
        torch.cuda.empty_cache()

    say(f"# Speed\n\n{machine(bench.device)}\n{READING}\n")
    part("The networks", "networks", bench.networks())
    part(f"The ceiling, batch {batch}", None, bench.peak_conv_flops(batch))
    sizes = {"forward": batches, "training": [batch], "sampling": [min(batch, DRAWN)]}
    for name in (name for name in PARTS if name in asked.rows):
        able = [n for n in bench.names if name != "sampling" or CONTENDERS[n].draw]
        rows = [(n, setting) for n in able for setting in bench.settings(n, name, modes)]
        for size in sizes[name]:
            part(f"{name.capitalize()}, batch {size}", name, bench.compare(name, size, rows))
    for name in ("training", "sampling") if "levers" in asked.rows else ():
        rows = [("diffusers", PLAIN), *product(("diffunet", "diffusers"), bench.levers(name, modes))]
        for size in sizes[name]:
            part(f"Levers: {name}, batch {size}", "levers", bench.compare(name, size, rows))
    if asked.memory:
        part("Memory of training", "memory", bench.memory(batch))
        rows = [(name, EVERYONE[name].shipped) for name in ("diffusers", "diffunet", CHECKPOINTED)]
        part("What gradient checkpointing costs", "checkpointing", bench.compare("training", batch, rows))
    if asked.compile:
        part(f"Compile time, batch {batch}", "compile", bench.compile_times(batch))


if __name__ == "__main__":
    main()
