"""Experiments from Python: run them in a folder, and read what is there as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelleak.errors import LabelLeakError
from labelleak.lab.definition import Experiment
from labelleak.lab.experiment_grid import grid_study
from labelleak.lab.runner import RunProgress, run
from labelleak.lab.store import Record, Store, read_records
from labelleak.lab.summary import summarize
from labelleak.plugins import add_folder

if TYPE_CHECKING:
    import pandas

_FACTS = ("experiment", "trial", "network", "classes", "features", "batch_size")


@dataclass(frozen=True)
class Results:
    """The records of experiments.

    Attributes:
        experiments: The experiments.
        records: One record per trial, as `labelleak.lab.trial` describes it; those of other
            experiments in the same folder are not among them.
        failed: Why an experiment could not be run, by its name.
        found: Keys of the records that were there before.
    """

    experiments: tuple[Experiment, ...]
    records: tuple[Record, ...]
    failed: dict[str, str]
    found: frozenset[str]

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial and attack, or baseline.

        Returns:
            ``experiment``, ``trial``, ``network``, ``classes``, ``features`` (of the head),
            ``batch_size``; ``attack``; the scores of `labelleak.score` (None where an attack
            restores a set only); ``certified``, ``flags`` (joined by commas), ``error`` (why it
            could not run, or None), ``seconds`` where they are measured; ``found`` (whether the
            record is of an earlier run) and ``code`` (hash of the code that made it).
        """
        return [row for record in self.records for row in self._rows_of(record)]

    def _rows_of(self, record: Record) -> Iterable[dict[str, Any]]:
        facts = {name: record[name] for name in _FACTS}
        origin = {"found": record["key"] in self.found, "code": record["code"]}
        for attack, outcome in record["attacks"].items():
            told = {"certified": outcome["certified"], "flags": ",".join(outcome["flags"])}
            if (seconds := record["measures"].get(f"{attack}.seconds")) is not None:
                told["seconds"] = seconds
            scores = outcome["counts"] or {}
            yield {
                **facts, "attack": attack, **scores, **told, "error": outcome["error"], **origin
            }  # fmt: skip
        for name, scores in record.get("baselines", {}).items():
            yield {**facts, "attack": name, **scores, **origin}

    def summary(self, title: str = "Comparison") -> dict[str, Any]:
        """Means over trials with 95 % intervals, schema ``labelleak/study/1``.

        Args:
            title: Title for the reader.
        """
        study = grid_study(self.experiments, "comparison", title)
        return summarize(study, self.records, found=self.found)

    def to_pandas(self) -> "pandas.DataFrame":
        """The `rows` as a table of pandas.

        Raises:
            LabelLeakError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise LabelLeakError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.rows())


def run_all(
    experiments: Sequence[Experiment],
    folder: Path | str,
    *,
    data_dir: Path | str | None = None,
    workers: int | None = 1,
    dask: str | None = None,
    device: str = "cpu",
    module_dir: Path | str | None = None,
    progress: RunProgress | None = None,
) -> Results:
    """Run the trials that a folder does not hold yet, and read the results.

    Args:
        experiments: What to run; names are unique.
        folder: Folder for the records; made if it is not there. The same call goes on after an
            interruption, and runs again what other code has run.
        data_dir: Folder with the data, as in `labelleak.lab.datasets.load`.
        workers: Number of processes; None for one per core. In a script, more than one need
            ``if __name__ == "__main__":``.
        dask: Address of a Dask scheduler in place of processes.
        device: Where networks run, ``"cpu"`` or ``"cuda"``.
        module_dir: Folder of modules that the experiments name as ``module:name``.
        progress: Called with the name of the work, how much is done, and how much there is.

    Returns:
        The results of these experiments.

    Raises:
        LabelLeakError: See `labelleak.lab.runner.run`.

    Examples:
        >>> import tempfile
        >>> from labelleak import lab
        >>> one = lab.Experiment(
        ...     name="FCN-3, K = 8",
        ...     data="mnist-sample",
        ...     network={"name": "fcn-3"},
        ...     batch={"size": 8},
        ...     attacks=["ilrg", "gradinversion"],
        ...     trials=2,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results = lab.run_all([one], folder)
        >>> [(row["trial"], row["attack"], row["leacc"]) for row in results.rows()]
        [(0, 'ilrg', 1.0), (0, 'gradinversion', 1.0), (1, 'ilrg', 1.0), (1, 'gradinversion', 1.0)]
    """
    if module_dir is not None:
        add_folder(module_dir)
    with Store(folder) as store:
        found = frozenset(record["key"] for record in store.records())
        summary = run(
            experiments,
            store,
            data_dir=data_dir,
            workers=workers,
            dask=dask,
            device=device,
            progress=progress,
        )
        return _of_these(experiments, store.records(), summary.failed, found)


def read_results(experiments: Sequence[Experiment], folder: Path | str) -> Results:
    """Read what a folder holds of experiments, without running anything.

    Args:
        experiments: The experiments.
        folder: Folder of a run.

    Returns:
        The results that this code has made.

    Raises:
        UnreadableFile: The folder holds no records, or one that is none.
    """
    records = read_records(folder)
    return _of_these(experiments, records, {}, frozenset(record["key"] for record in records))


def _of_these(
    experiments: Sequence[Experiment],
    records: Sequence[Record],
    failed: dict[str, str],
    found: frozenset[str],
) -> Results:
    keys = {one.trial_key(index) for one in experiments for index in range(one.trials)}
    return Results(tuple(experiments), tuple(r for r in records if r["key"] in keys), failed, found)
