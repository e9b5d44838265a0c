"""Run the scripts of the examples as a reader would."""

import subprocess
import sys


def run_script(script, *arguments, folder):
    """Output of a script run in that folder; warnings are errors, and it must succeed."""
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
