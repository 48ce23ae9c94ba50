"""Speed and memory of one network in diffunet and other libraries, relative to the machine's fastest convolution.

    python benchmarks/speed/run.py                                          # eager: all as shipped, and at best
    python benchmarks/speed/run.py --compile --memory                       # the whole report
    python benchmarks/speed/run.py --tiny                                   # a rehearsal
    python benchmarks/speed/run.py --batch_sizes 1 512 --compile --memory --peak 790            # an H200

Needs pip install monai denoising-diffusion-pytorch. All rows of a table are in memory together: about 0.6 GB per row of
training, 7 GB in all without --compile and 16 with it; --contenders selects fewer. The report is printed and written to
--output part by part.
"""

import argparse
import gc
import os
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from calls import PARTS, Convolution, compile_seconds, in_new_process, peak_memory
from contenders import CHECKPOINTED, CONTENDERS, EVERYONE, FULL, PLAIN, STEPS, TINY, Setting, Shape
from report import add_record_flag, append_rows, header, precisions, table
from timing import WARM_UP, format_median, interleaved
from torch.utils.flop_counter import FlopCounterMode

MAX_SAMPLES = 16
"""Images sampled at once, at most."""
MEMORY_REPEATS = 3
"""New processes for each number of bytes, at most; one on a GPU, where it is exact."""

READING = """All rows of a table are timed in turn, each once per round. × is the median of the ratios of GFLOP/s within
rounds, which for the same network are ratios of speed; the ceiling is the fastest 3×3 convolution in the row's
precision, timed in the same rounds. In brackets: the median's 95 % interval by order statistics (with fewer than six
rounds: the range)."""
WORDS = {
    "networks": """DDPM's network for CIFAR-10 without dropout, as each library implements it. Lucidrains is the most
similar one of denoising-diffusion-pytorch, which cannot express it: compare its GFLOP/s, not its images/s. Operations
are counted by torch's FlopCounterMode, a multiplication and an addition as two; a training step is three forward
passes.""",
    "forward": "One network call, without gradient.",
    "training": """Loss, gradient, clipping, optimizer and EMA, as in each library: diffunet's objective, fused AdamW
and EMA; the diffusers example's, with AdamW and EMAModel, also for MONAI; lucidrains' GaussianDiffusion, Adam, and EMA
at every tenth step. Fused: a fused optimizer, and the EMA with foreach. diffunet always has both: its rows with and
without them differ by noise.""",
    "sampling": f"{STEPS} steps of DDIM from new noise: diffunet's `sample`, and `DDIMPipeline`.",
    "levers": "diffusers as shipped, then one setting after the other, cumulatively.",
    "memory": """Peak of two steps as shipped, each in a new process: of the whole process on a CPU, of the tensors on a
GPU. The memory per image is the difference between the two batch sizes.""",
    "checkpointing": "At all levels. GFLOP/s do not include recomputation.",
    "compile": """The first call minus the second (fp32, contiguous): with an empty cache, and in a new process with the
cache of the first. One measurement each.""",
}


# ── the parts of the report ───────────────────────────────────────────────────────────────────────


@dataclass
class Bench:
    """The parts of a report, with the raw times of all of them in `raw`."""

    shape: Shape
    device: torch.device
    rounds: int
    names: list[str]
    peak: float | None
    gflop: dict[str, float] = field(default_factory=dict)
    """Of a network call for one image."""
    ceilings: dict[str, Convolution] = field(default_factory=dict)
    """The fastest convolution in each precision."""
    raw: list[dict] = field(default_factory=list)
    """Rows for --record: seconds of each round, or bytes."""

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
        return table(["", "class", "parameters", "GFLOP, forward, one image"], rows)

    def convolutions(self, batch: int) -> str:
        first, second, *_ = self.shape.widths
        shapes = [(first, self.shape.side), (second, self.shape.side // 2)]
        settings = [Setting(p, channels_last=last) for p in precisions(self.device) for last in (False, True)]
        kinds = [Convolution(*shape, setting) for shape, setting in product(shapes, settings)]
        seconds = interleaved({kind: kind.call(batch, self.device) for kind in kinds}, self.rounds)
        speeds = {kind: kind.gflop(batch) / seconds[kind] for kind in kinds}
        for kind in sorted(kinds, key=lambda kind: np.median(speeds[kind])):
            self.ceilings[kind.setting.precision] = kind
        rows = [[str(kind), kind.setting.precision, format_median(speeds[kind], ",.0f")] for kind in kinds]
        return table(["3×3 convolution", "precision", "GFLOP/s"], rows)

    def settings(self, name: str, part: str, modes: tuple[str | None, ...]) -> list[Setting]:
        """Return the library's own setting, and the candidates for its best."""
        used = [precision for precision in ("fp32", "bf16") if precision in precisions(self.device)]
        fused = part == "training"
        several = product(used, modes, (False, True))
        return [EVERYONE[name].shipped, *(Setting(p, last, mode, fused) for p, mode, last in several)]

    def levers(self, part: str, modes: tuple[str | None, ...]) -> list[Setting]:
        """Return settings with one improvement after the other, cumulatively."""
        used = [p for p in ("strict fp32", "tf32", "bf16") if p in precisions(self.device)] or ["fp32"]
        rungs = [Setting(precision, fused=part == "training") for precision in used]
        rungs += [replace(rungs[-1], channels_last=True, compiled=mode) for mode in modes]
        if self.device.type == "cuda" and "default" in modes and part != "training":
            rungs.append(replace(rungs[-1], compiled="reduce-overhead"))
        return rungs

    def compare(self, part: str, batch: int, rows: list[tuple[str, Setting]]) -> str:
        """Time all rows in turn, together with the convolutions that are the ceilings."""
        make, network_calls = PARTS[part]
        calls, refused = {}, []
        for name, setting in dict.fromkeys(rows):
            try:
                call = make(name, setting, self.shape, batch, self.device)
                for _ in range(WARM_UP[self.device.type]):
                    call()
                calls[name, setting] = call
            except Exception as error:  # one failure must not cost the others' table
                reason = (str(error).strip().splitlines() or [""])[0]
                refused.append(f"{name}, {setting}: {type(error).__name__}: {reason}.")
        gflop = {row: self.gflop[row[0]] * network_calls * batch for row in calls}
        ceilings = {self.ceilings[setting.precision] for _, setting in calls}
        seconds = interleaved(calls | {kind: kind.call(batch, self.device) for kind in ceilings}, self.rounds)
        speed = {row: gflop[row] / seconds[row] for row in calls}
        ceiling = {kind.setting.precision: kind.gflop(batch) / seconds[kind] for kind in ceilings}
        shipped = speed["diffusers", PLAIN]
        best = max((row for row in calls if row[0] == "diffusers"), key=lambda row: np.median(speed[row]))
        for name, setting in calls:
            row = {"part": part, "batch": batch, "name": name, "setting": str(setting)}
            self.raw.append(row | {"seconds": seconds[name, setting].tolist()})

        def describe(name: str, setting: Setting) -> str:
            prefix = "as shipped: " * (setting == EVERYONE[name].shipped)
            return f"{prefix}{setting}{'; its best' * ((name, setting) == best)}"

        cells = [
            [
                name,
                describe(name, setting),
                f"{1000 * np.median(seconds[name, setting]):,.1f}",
                f"{np.median(batch / seconds[name, setting]):,.2f}",
                f"{np.median(own):,.0f}",
                format_median(own / shipped),
                format_median(own / speed[best]),
                format_median(100 * own / ceiling[setting.precision], ".0f"),
                *([format_median(own / self.peak / 10, ".1f")] if self.peak else []),
            ]
            for (name, setting), own in speed.items()
        ]
        heads = ["", "setting", "ms", "images/s", "GFLOP/s", "× diffusers as shipped", "× diffusers at its best"]
        heads += ["% of the ceiling", *([f"% of {self.peak:g} TFLOP/s"] if self.peak else [])]
        return table(heads, cells) + "".join(f"\nLeft out: {line}\n" for line in refused)

    def compile_times(self, batch: int) -> str:
        """Measure in two new processes, of which the second has the first one's cache."""
        rows = []
        for name, part in product(self.names, ("forward", "training")):
            with TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                took = [in_new_process(compile_seconds, part, name, self.shape, batch, self.device) for _ in range(2)]
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            rows.append([name, part, *(f"{seconds:.0f}" for seconds in took)])
            self.raw.append({"part": f"compile {part}", "batch": batch, "name": name, "seconds": took})
        return table(["", "", "s, first time", "s, from the cache"], rows)

    def memory(self, batch: int) -> str:
        """Measure the memory of training as shipped, and per image, from two batch sizes."""
        sizes = (batch // 2, batch)
        repeats = range(1 if self.device.type == "cuda" else min(self.rounds, MEMORY_REPEATS))
        peaks = {
            name: np.array(
                [[in_new_process(peak_memory, name, self.shape, size, self.device) for size in sizes] for _ in repeats]
            )
            for name in [*self.names, CHECKPOINTED]
        }
        self.raw += [{"part": "memory", "name": n, "batches": sizes, "bytes": p.tolist()} for n, p in peaks.items()]
        each = {name: (peak[:, 1] - peak[:, 0]) / (sizes[1] - sizes[0]) for name, peak in peaks.items()}
        rows = [
            [
                name,
                *(format_median(peak[:, column] / 1e9) for column in range(2)),
                format_median(each[name] / 1e6, ".1f"),
                format_median(each[name] / each["diffusers"]),
            ]
            for name, peak in peaks.items()
        ]
        heads = ["", *(f"GB, batch {size}" for size in sizes), "MB per image", "× diffusers"]
        return table(heads, rows)


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--rows", nargs="*", choices=[*PARTS, "levers"], default=[*PARTS, *(["levers"] if cuda else [])])
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="diffusers always takes part")
    add("--batch_sizes", type=int, nargs="+", help="all for the forward pass, the greatest for training (1 16)")
    add("--rounds", type=int, help="timings of each; six give 95 %% intervals (9)")
    add("--compile", action="store_true", help="also torch.compile, which takes minutes per row, and its time")
    add("--memory", action="store_true", help="also the memory of training, and the effect of gradient checkpointing")
    add("--peak", type=float, help="the machine's nominal TFLOP/s, for one more column")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="(%(default)s)")
    add("--tiny", action="store_true", help="a tiny network, to rehearse")
    add("--output", type=Path, help="a file for the report")
    add_record_flag(parser)
    args = parser.parse_args()
    batches = args.batch_sizes or ([1, 4] if args.tiny else [1, 16])
    batch, modes = max(batches), (None, "default") if args.compile else (None,)
    bench = Bench(
        shape=TINY if args.tiny else FULL,
        device=args.device,
        rounds=args.rounds or (3 if args.tiny else 9),
        names=[name for name in CONTENDERS if name in {*args.contenders, "diffusers"}],
        peak=args.peak,
    )
    torch._dynamo.config.recompile_limit = 1000  # the networks share their code
    report = []

    def add_text(text: str) -> None:
        print(text, flush=True)
        report.append(text)
        if args.output:
            args.output.write_text("\n".join(report) + "\n", encoding="utf-8")

    def part(title: str, key: str | None, rows: str) -> None:
        add_text("\n\n".join([f"## {title}", *([WORDS[key]] if key else []), rows]))
        torch._dynamo.reset()  # frees networks that are no longer needed
        gc.collect()
        torch.cuda.empty_cache()

    add_text(f"# Speed\n\n{header(bench.device)}\n{READING}\n")
    part("The networks", "networks", bench.networks())
    part(f"The ceiling, batch {batch}", None, bench.convolutions(batch))
    sizes = {"forward": batches, "training": [batch], "sampling": [min(batch, MAX_SAMPLES)]}
    for name in (name for name in PARTS if name in args.rows):
        able = [n for n in bench.names if name != "sampling" or CONTENDERS[n].sample]
        rows = [(n, setting) for n in able for setting in bench.settings(n, name, modes)]
        for size in sizes[name]:
            part(f"{name.capitalize()}, batch {size}", name, bench.compare(name, size, rows))
    for name in ("training", "sampling") if "levers" in args.rows else ():
        rows = [("diffusers", PLAIN), *product(("diffunet", "diffusers"), bench.levers(name, modes))]
        for size in sizes[name]:
            part(f"Cumulative settings: {name}, batch {size}", "levers", bench.compare(name, size, rows))
    if args.memory:
        part("Memory of training", "memory", bench.memory(batch))
        rows = [(name, EVERYONE[name].shipped) for name in ("diffusers", "diffunet", CHECKPOINTED)]
        part("Cost of gradient checkpointing", "checkpointing", bench.compare("training", batch, rows))
    if args.compile:
        part(f"Compile time, batch {batch}", "compile", bench.compile_times(batch))
    if args.record:
        append_rows("speed", bench.raw)


if __name__ == "__main__":
    main()
