"""Scripts of the examples, run as their reader would run them."""

import subprocess
import sys


def run_script(script, *arguments, folder):
    """What it prints, run in that folder with every warning an error; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
