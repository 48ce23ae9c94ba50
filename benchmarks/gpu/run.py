"""What has to be known of a GPU, the riskiest first, within ten minutes of one card; a JSON file has the results.

    python benchmarks/gpu/run.py --folder results
    python benchmarks/gpu/run.py --folder results compiled waits        these alone
    python benchmarks/gpu/run.py --folder rehearsal --tiny              everything, small, also without a GPU

Each check runs by itself: one that fails is reported with the end of its traceback, and the next begins. None begins
after --seconds. The same command does what is missing; --again repeats everything.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import checks
import speed
import torch
from workbench import Workbench

Check = Callable[[Workbench], dict]
ORDER: list[Check] = [
    checks.environment,
    checks.commands,
    checks.objectives_and_precisions,
    checks.broken_gradients_are_skipped,
    checks.waits,
    checks.compiled,
    checks.resumed,
    checks.samplers,
    checks.clock_of_the_log,
    speed.peak,
    speed.training,
    speed.sampling,
    checks.volumes,
    checks.latents,
    checks.out_of_memory,
    checks.benchmark_and_automatic_batch,
    checks.data_outside_of_the_device,
    checks.several_devices,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {check.__name__: check for check in ORDER}
    parser.add_argument("names", metavar="CHECK", nargs="*", choices=[[], *names], help=", ".join(names))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540, help="after which no check begins (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file, started = args.folder / "gpu.json", time.monotonic()
    results = json.loads(file.read_text()) if file.exists() and not args.again else {}
    bench = Workbench(args.folder.resolve(), args.tiny)
    for name in args.names or names:
        if results.get(name, {}).get("passed") and not args.names:
            continue
        if time.monotonic() - started > args.seconds:
            print(f"no time left for {name}")
            continue
        print(f"── {name}", flush=True)
        began = time.monotonic()
        try:
            result = {"passed": True, **names[name](bench)}
        except Exception:
            result = {"passed": False, "traceback": traceback.format_exc()[-3000:]}
        result["seconds"] = round(time.monotonic() - began, 1)
        results[name] = result
        file.write_text(json.dumps(results, indent=2))
        shown = {key: value for key, value in result.items() if key != "traceback"}
        print(json.dumps(shown), result.get("traceback", ""), sep="\n", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    failed = [name for name, result in results.items() if not result["passed"]]
    print(f"{time.monotonic() - started:.0f} s; failed: {', '.join(failed) or 'none'}; {file}")


if __name__ == "__main__":
    main()
