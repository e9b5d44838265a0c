"""A study: a table or figure of the paper, or a user's grid, with the experiments to run."""

from typing import Literal

from labelleak.lab.definition import Experiment, Training
from labelleak.lab.fields import Definition
from labelleak.lab.published_figures import PublishedRun

Scale = Literal["smoke", "quick", "paper"]


class Panel(Definition):
    """One set of axes of a figure.

    Attributes:
        key: By which rows name it.
        title: Title for the reader.
        x_title: Title of the horizontal axis, with its unit.
        x_scale: Kind of the horizontal axis.
        x_ticks: Positions of the published points.
        metrics: Names of the metrics to draw.
        x_labels: Texts at the ticks; None for their numbers.
    """

    key: str
    title: str
    x_title: str
    x_scale: Literal["linear", "log2", "category"]
    x_ticks: tuple[float, ...]
    metrics: tuple[str, ...]
    x_labels: tuple[str, ...] | None = None


class StudyRow(Definition):
    """One row of a table, or one point of a figure.

    Attributes:
        label: Label for the reader, unique in the study.
        experiment: The experiment to run.
        published: The published runs to compare with; their figures are of different kinds.
        panel: Key of the panel that shows the point; None in a table.
        series: The curve that the point belongs to.
        x: Position on the horizontal axis.
        stage: Training of the published run's network, for the reader; None: that of the
            experiment.
        shrunk: How the experiment is smaller than the published one, one text each.
        reason: Any other reason why the result may differ from the published one.
    """

    label: str
    experiment: Experiment
    published: tuple[PublishedRun, ...] = ()
    panel: str | None = None
    series: str | None = None
    x: float | None = None
    stage: str | None = None
    shrunk: tuple[str, ...] = ()
    reason: str | None = None


class Study(Definition):
    """A table or a figure.

    Attributes:
        name: Name on the command line and in file names.
        title: Title for the reader.
        source: Where the published figures are from.
        scale: The scale it is run at; None for a user's own grid.
        metrics: Names of the metrics to show, in order.
        rows: The experiments, with what they are compared to.
        panels: The axes of a figure; none for a table.
        omitted: What the scale and the available data leave out, shrink or replace, one text each.
    """

    name: str
    title: str
    source: str
    scale: Scale | None = None
    metrics: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    panels: tuple[Panel, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def experiments(self) -> list[Experiment]:
        """The experiments of all rows; where they differ in name and length alone, the longest."""
        longest: dict[str, Experiment] = {}
        for row in self.rows:
            key = row.experiment.trial_key(0)
            if key not in longest or longest[key].trials < row.experiment.trials:
                longest[key] = row.experiment
        return list(longest.values())


def stage_title(training: Training | None) -> str:
    """How far a network is trained, for the reader: ``untrained``, ``epoch 40``."""
    if training is None:
        return "untrained"
    return f"{training.unit.removesuffix('s')} {training.steps}"
