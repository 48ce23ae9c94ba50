"""Run all stress tests one after the other: kills, bad input, several machines. About an hour on two cores.

python -m stress
python -m stress --only crash inputs --kills 5 --cases 25          some of them, and shorter
"""

import argparse
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("crash", "inputs", "multi_node")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="(all of them)")
    parser.add_argument("--kills", type=int, default=100, help="a fifth as many with two processes (%(default)s)")
    parser.add_argument("--cases", type=int, default=1000, help="cases of bad input (%(default)s)")
    args = parser.parse_args()
    programs = (
        ("crash", "--kills", str(args.kills)),
        ("crash", "--kills", str(-(-args.kills // 5)), "--processes", "2"),
        ("inputs", "--cases", str(args.cases)),
        ("multi_node",),
    )
    failed = []
    for name, *options in programs:
        if name in args.only:
            print(f"── {' '.join((name, *options))} ──", flush=True)
            if subprocess.run([sys.executable, "-m", f"stress.{name}", *options]).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
