"""Entry point of the command line, as `labelleak` and as `python -m labelleak`."""

from labelleak.cli.entry import main

if __name__ == "__main__":
    main()
