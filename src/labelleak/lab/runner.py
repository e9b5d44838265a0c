"""Run experiments: in processes on this machine, or on an existing Dask cluster."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from labelleak.errors import LabelLeakError
from labelleak.lab.definition import Experiment
from labelleak.lab.materials import dataset_of, network_of, training_of, training_set
from labelleak.lab.pretraining import is_trained, train
from labelleak.lab.store import Record, Store
from labelleak.lab.trial import run_trial
from labelleak.plugins import add_folder, added_folders, import_plugin

RunProgress = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and how much there is."""

_WATCH_SECONDS = 1.0
# Exit status of a worker whose run is gone. Not 1, the status of a verdict.
_ORPHANED = 2


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a run.

    Attributes:
        trials: Number of all trials of the experiments.
        found: Number of trials whose records were already in the store.
        made: Number of trials whose records this run added.
        failed: For each experiment that could not be completed, its name and why.
    """

    trials: int
    found: int
    made: int
    failed: dict[str, str] = field(default_factory=dict)


class _Task(NamedTuple):
    experiment: Experiment
    number: int
    data_dir: str | None
    device: str
    code: str
    """Hash of the code in the process that gives the task."""
    modules: tuple[str, ...]
    """Modules of the plug-ins."""
    folders: tuple[str, ...]
    """Where these may be, besides the installed packages."""


class _Failure(NamedTuple):
    experiment: str
    reason: str


def run(
    experiments: Iterable[Experiment],
    store: Store,
    *,
    data_dir: Path | str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    device: str = "cpu",
    progress: RunProgress | None = None,
    connect_seconds: float = 10.0,
) -> RunSummary:
    """Run all trials of the experiments that the store does not hold yet.

    First this process trains the networks to the stages that are needed. Then trials run in worker
    processes with one thread each, and every record is stored as soon as its trial ends. To resume
    an interrupted run, run it again: stored trials are not repeated, and the others give the same
    records as without the interruption.

    An experiment that cannot be run (its data is missing, its batch is too large) does not stop
    the others.

    Args:
        experiments: The experiments to run.
        store: Open store for the records.
        data_dir: Folder with the data, as in `labelleak.lab.datasets.load`.
        workers: Number of processes on this machine; None for one per core, 1 for this process.
        dask: Address of a running Dask scheduler such as ``tcp://host:8786``, in place of processes
            on this machine. Its workers need labelleak, the same `data_dir`, and for trained
            networks the same cache folder (LABELLEAK_CACHE).
        device: Where networks run in trials, ``"cpu"`` or ``"cuda"``. The same trial gives the same
            record bit for bit on the CPU only, and on one kind of it.
        progress: Called with the progress of ``"train ..."`` for each network, then ``"trials"``.
        connect_seconds: How long to wait for the Dask scheduler.

    Returns:
        The outcome.

    Raises:
        LabelLeakError: The extra `experiments` or `dask` is not installed, there is no GPU on this
            machine, no scheduler answers, or the scheduler or a worker died.
        UnreadableFile: The store cannot be written to.
    """
    if device == "cuda" and dask is None and not torch.cuda.is_available():
        raise LabelLeakError("there is no CUDA GPU here: take the device cpu")
    experiments = list(experiments)
    tell = progress or (lambda what, done, total: None)
    data_dir = None if data_dir is None else str(Path(data_dir).expanduser().resolve())
    tasks: dict[str, _Task] = {}
    keys = set()
    folders = added_folders()
    for experiment in experiments:
        code, modules = experiment.code, _modules_of(experiment, dask is None and workers == 1)
        for number in range(experiment.trials):
            key = experiment.trial_key(number)
            keys.add(key)
            if key not in store:
                task = _Task(experiment, number, data_dir, device, code, modules, folders)
                tasks.setdefault(key, task)
    found = len(keys) - len(tasks)
    needed = {task.experiment.name: task.experiment for task in tasks.values()}
    failed = _prepare(list(needed.values()), data_dir, tell)
    tasks = {key: task for key, task in tasks.items() if task.experiment.name not in failed}
    made = 0
    tell("trials", found, found + len(tasks))
    results = (
        _on_dask(tasks, dask, connect_seconds)
        if dask
        else _in_processes(list(tasks.values()), workers)
    )
    for done, result in enumerate(results, start=1):
        if isinstance(result, _Failure):
            failed.setdefault(result.experiment, result.reason)
        else:
            store.append(result)
            made += 1
        tell("trials", found + done, found + len(tasks))
    return RunSummary(len(keys), found, made, failed)


def _modules_of(experiment: Experiment, alone: bool) -> tuple[str, ...]:
    """The modules that a process has to import before it can run trials of an experiment."""
    plugins = experiment.plugins_used
    for label, plugin in plugins:
        if plugin.module == "__main__" and not alone:
            raise LabelLeakError(
                f"{label!r} is defined in the script or notebook that runs, where other processes "
                "cannot import it: write it in a module, or take one worker (workers=1)"
            )
    return tuple(sorted({plugin.module for _, plugin in plugins}))


def _prepare(
    experiments: list[Experiment], data_dir: str | None, tell: RunProgress
) -> dict[str, str]:
    """Load every data set once, so that no two workers convert it, and train the networks.

    Returns:
        For each experiment for which that failed, its name and why.
    """
    failed: dict[str, str] = {}
    runs: dict[object, list[Experiment]] = {}
    for experiment in experiments:
        try:
            dataset_of(experiment, experiment.data_split, data_dir)
        except (LabelLeakError, ValueError) as error:
            failed[experiment.name] = str(error)
            continue
        training = training_of(experiment)
        if training is not None:
            whole = training.model_copy(update={"steps": 0})
            run = (experiment.data, experiment.image_size, network_of(experiment), whole)
            task = (experiment.range, experiment.targets, experiment.loss)
            runs.setdefault((*run, *task), []).append(experiment)
    for stages in runs.values():
        failed |= _train(stages, data_dir, tell)
    return failed


def _train(
    experiments: list[Experiment], data_dir: str | None, tell: RunProgress
) -> dict[str, str]:
    """Train the network that these experiments have in common to all their stages."""
    network, loss = network_of(experiments[0]), experiments[0].loss
    stages = {e.name: stage for e in experiments if (stage := training_of(e)) is not None}
    what = f"train {network.name} on {experiments[0].data}"
    try:
        dataset = training_set(max(experiments, key=_steps), data_dir)
    except (LabelLeakError, ValueError) as error:
        return {experiment.name: str(error) for experiment in experiments if _steps(experiment)}
    try:
        train(network, stages.values(), dataset, loss, progress=partial(tell, what))
    except (LabelLeakError, ValueError) as error:
        return {
            name: str(error)
            for name, stage in stages.items()
            if not is_trained(network, stage, dataset, loss)
        }
    return {}


def _steps(experiment: Experiment) -> int:
    return 0 if experiment.training is None else experiment.training.steps


def _attempt(task: _Task) -> Record | _Failure:
    experiment = task.experiment
    try:
        for folder in task.folders:
            add_folder(folder)
        for module in task.modules:
            import_plugin(module, f"experiment {experiment.name!r}")
        if experiment.code != task.code:
            raise LabelLeakError(
                "a worker has other code than this process, of labelleak or of a plug-in: run it "
                "again where both are the same (has a file been changed since?)"
            )
        return run_trial(experiment, task.number, task.data_dir, device=task.device)
    except (LabelLeakError, ValueError) as error:
        return _Failure(experiment.name, str(error))


def _attempt_in_process(task: _Task, parent: int) -> Record | _Failure:
    """Attempt a task in a worker process, which leaves an interruption (Ctrl-C) to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    return _attempt(task)


@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed at any time.

    The parent may already be dead, so its pid is passed in rather than read here.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        with suppress(OSError):  # whoever read standard error may be gone, too
            os.write(2, b"labelleak: a worker ends: the run that it belongs to is gone\n")
        os._exit(_ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def _in_processes(tasks: list[_Task], workers: int | None) -> Iterator[Record | _Failure]:
    if workers == 1 or len(tasks) == 1:
        yield from map(_attempt, tasks)
        return
    try:
        import joblib
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError:
        raise LabelLeakError(
            "several processes need the extra 'experiments': pip install 'labelleak[experiments]', "
            "or take one worker"
        ) from None
    with (
        warnings.catch_warnings(),
        joblib.parallel_config("loky", inner_max_num_threads=1),
    ):
        if joblib.effective_n_jobs(workers or -1) == 1:
            # On one core joblib would call the workers' function in this process.
            yield from map(_attempt, tasks)
            return
        # Not news to the user: joblib replaces workers that hold a data set, as it takes them to
        # leak memory, and an interruption cancels running tasks.
        warnings.filterwarnings("ignore", r"A worker stopped while|\d+ tasks ", UserWarning)
        parallel = joblib.Parallel(n_jobs=workers or -1, return_as="generator_unordered")
        results = parallel(joblib.delayed(_attempt_in_process)(task, os.getpid()) for task in tasks)
        try:
            yield from results
        except TerminatedWorkerError:
            raise LabelLeakError(
                "a worker process died, perhaps because memory ran out: the records made so far "
                "are kept; run the same again, with fewer workers"
            ) from None
        finally:
            results.close()


def _on_dask(
    tasks: dict[str, _Task], address: str, connect_seconds: float
) -> Iterator[Record | _Failure]:
    try:
        from distributed import Client, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise LabelLeakError(
            "a Dask cluster needs the extra 'dask': pip install 'labelleak[experiments,dask]'"
        ) from None
    try:
        client = Client(  # type: ignore[no-untyped-call]
            address, timeout=connect_seconds, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise LabelLeakError(f"no Dask scheduler answers at {address}: {error}") from None
    with _without_log("distributed.client"), client:
        names = [f"labelleak-{key}" for key in tasks]
        futures = client.map(_attempt, list(tasks.values()), key=names)
        try:
            for future in as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
                yield future.result()
                future.release()
        except (CancelledError, CommClosedError):
            raise LabelLeakError(
                f"the Dask scheduler at {address} is gone: the records made so far are kept; start "
                "it, and run the same again"
            ) from None
        except (ImportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "deserialization" not in str(error):
                raise
            raise LabelLeakError(
                f"the Dask cluster at {address} cannot read the trials: its scheduler and workers "
                f"need labelleak as it is here ({str(error).splitlines()[0]})"
            ) from None
        except KilledWorker as error:
            raise LabelLeakError(
                f"{error.allowed_failures + 1} Dask workers died of the same trial, perhaps for "
                "want of memory: the records made so far are kept; run the same again, with fewer "
                "workers"
            ) from None
        finally:
            client.cancel(futures)  # type: ignore[no-untyped-call]


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Keep a logger from standard error: it prints tracebacks of what becomes one clear line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
