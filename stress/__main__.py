"""All trials at full length, one after the other: kills, bad input, machines. About an hour on two cores."""

import subprocess
import sys

TRIALS = (
    ("crash", "--kills", "100"),
    ("crash", "--kills", "20", "--processes", "2"),
    ("inputs", "--cases", "1000"),
    ("machines",),
)


def main() -> int:
    failed = []
    for name, *options in TRIALS:
        print(f"── {' '.join((name, *options))} ──", flush=True)
        if subprocess.run([sys.executable, "-m", f"stress.{name}", *options]).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was lost")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
