"""Entry point of the command line; says what to install where its extra is missing."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from labelleak.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            "labelleak: the command line needs its extra: pip install 'labelleak[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("labelleak: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
