"""`python -m diffunet`, and the start of every command: Ctrl-C is handled before anything slow is imported."""

import sys


def main(*words: str) -> None:
    """Run the command of the command line, or the one that `words` begin."""
    try:
        from diffunet.cli.main import main as command

        command([*words, *sys.argv[1:]])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
