"""Entry point of the command line, as `labelleak` and as `python -m labelleak`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Modules that a grid or an option names are not looked for in the current folder, as by
    # `labelleak`. What was imported until here was: `python -P -m labelleak` leaves that out, too.
    del sys.path[0]

from labelleak.cli.entry import main

if __name__ == "__main__":
    main()
