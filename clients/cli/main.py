"""Where the program `keyside` starts."""

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    if importlib.util.find_spec("click") is None:
        print("the command line needs the extra: pip install 'keyside[cli]'", file=sys.stderr)
        sys.exit(1)
    from keyside.clients.cli.root import cli

    cli(prog_name="keyside")


if __name__ == "__main__":
    main()
