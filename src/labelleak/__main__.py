"""Entry point of the command line, as `labelleak` and as `python -m labelleak`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `labelleak` does not import from the current folder either: it may hold a stranger's files.
    del sys.path[0]

from labelleak.cli.entry import main

if __name__ == "__main__":
    main()
