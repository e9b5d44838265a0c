"""Time and memory of `labelleak.capture`, as ratios to forward and backward passes in one run.

    python benchmarks/capture.py [--output results/benchmark-capture.json]

ResNet-18 with the paper's stem, 100 classes, evaluation mode, random images of 32 x 32 pixels.
`step` is one forward and backward pass over the whole batch, `step-chunks` the same in chunks of
the size that `capture` takes, the gradients added up. The three take turns, each time in a fresh
process, and a ratio is the median over the turns. Time is processor time of one thread, which other
work on the machine hardly changes; memory is the peak of the resident set above what stood before
the call, network and images included in the latter (Linux only).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import labelleak
from labelleak.lab import networks
from labelleak.updates.forward import _CHUNK
from measuring import Row, in_own_process, load, peak, reset_peak, write

BATCH_SIZES = (256, 1024)
TURNS = 2
CLASSES = 100
IMAGE_SHAPE = (3, 32, 32)
NAMES = ("capture", "step", "step-chunks")


def prepared(batch_size: int) -> Mapping[str, Callable[[], tuple[Tensor, Tensor]]]:
    """The calls to measure; each returns the gradient of the head's weight and bias."""
    model = networks.build("resnet18", classes=CLASSES, image_shape=IMAGE_SHAPE, seed=0).eval()
    random = torch.Generator().manual_seed(batch_size)
    inputs = torch.randn(batch_size, *IMAGE_SHAPE, generator=random)
    labels = torch.randint(CLASSES, (batch_size,), generator=random)

    def capture() -> tuple[Tensor, Tensor]:
        gradient = labelleak.capture(model, inputs, labels).gradient
        assert gradient.bias is not None
        return gradient.weight, gradient.bias

    def step(chunk: int) -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        for start in range(0, batch_size, chunk):
            part = slice(start, start + chunk)
            logits = model(inputs[part])
            loss = torch.nn.functional.cross_entropy(logits, labels[part], reduction="sum")
            (loss / batch_size).backward()  # type: ignore[no-untyped-call]
        gradients = [model.get_parameter(f"fc.{name}").grad for name in ("weight", "bias")]
        assert gradients[0] is not None
        assert gradients[1] is not None
        return gradients[0], gradients[1]

    return {
        "capture": capture,
        "step": lambda: step(batch_size),
        "step-chunks": lambda: step(_CHUNK),
    }


def measure(batch_size: int, name: str) -> tuple[Row, tuple[Tensor, Tensor]]:
    """Seconds, peak bytes and result of one call (run in a fresh process)."""
    torch.set_num_threads(1)
    prepared(2)[name]()
    call = prepared(batch_size)[name]
    before = reset_peak()
    start = time.process_time()
    gradient = call()
    return {"seconds": time.process_time() - start, "peak_bytes": peak() - before}, gradient


def turn(batch_size: int) -> dict[str, Row]:
    """Measure all three, and check that they computed the same."""
    found = {name: in_own_process(measure, batch_size, name) for name in NAMES}
    for _, gradient in found.values():
        torch.testing.assert_close(gradient, found["capture"][1], rtol=1e-3, atol=1e-6)
    return {name: row for name, (row, _) in found.items()}


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=None)
    output = parser.parse_args().output
    load_before = load()
    results: list[Row] = []
    print(f"{'K':>5}  {'what':<12}{'s':>9}{'of step':>9}{'of step-chunks':>16}{'peak MB':>9}")
    for batch_size in BATCH_SIZES:
        turns = [turn(batch_size) for _ in range(TURNS)]
        for name in NAMES:
            row: Row = {
                "batch_size": batch_size,
                "name": name,
                "seconds": statistics.median(rows[name]["seconds"] for rows in turns),
                "runs": len(turns),
                "ratios": {
                    baseline: statistics.median(
                        rows[name]["seconds"] / rows[baseline]["seconds"] for rows in turns
                    )
                    for baseline in NAMES[1:]
                },
                "peak_bytes": max(rows[name]["peak_bytes"] for rows in turns),
            }
            results.append(row)
            print(
                f"{batch_size:>5}  {name:<12}{row['seconds']:>9.2f}{row['ratios']['step']:>9.3f}"
                f"{row['ratios']['step-chunks']:>16.3f}{row['peak_bytes'] / 1e6:>9.1f}",
                flush=True,
            )
    write(output, __doc__, load_before, threads=1, chunk=_CHUNK, results=results)


if __name__ == "__main__":
    main()
