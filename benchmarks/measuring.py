"""Shared by the benchmarks: a process for each measurement, its peak memory, the output file.

Memory is read from `/proc`: Linux only.
"""

import json
import multiprocessing
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

import labelleak

Row = dict[str, Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call a function in a fresh process, so that no memory of earlier calls counts."""
    # Not a Pool: its workers are daemons, which may not start processes of their own.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def reset_peak() -> int:
    """Restart the kernel's count of the peak, and return the resident set in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Largest resident set since `reset_peak`, or since the start of the process, in bytes."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def load() -> float:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def write(
    path: Path | None, what: str | None, load_before: float, threads: int, **figures: Any
) -> None:
    """Write figures and where they were taken, if a file is asked for."""
    if path is None:
        return
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    content = {
        "schema": "labelleak/benchmark/1",
        "what": what,
        "machine": {
            "processor": models[0] if models else platform.machine(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_before": load_before,
            "load_after": load(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "labelleak": labelleak.__version__,
        },
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
