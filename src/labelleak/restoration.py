"""What an attack concludes, and the projection of real-valued counts to integers."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.displays import Bar, bars_html


class Flag(Enum):
    """Why a verdict may be unreliable; the value is the explanation for the reader.

    Examples:
        >>> Flag.SET_ONLY.text
        'the attack tells which classes are present, and not how many of each'
    """

    SUMS_NOT_ZERO = (
        "the gradient does not sum to zero over the classes, as a cross-entropy gradient must: "
        "noise, sparsification, quantization, weight decay or an adaptive optimizer (Adam) in the "
        "client's steps, another loss or another layer"
    )
    LOOKS_LIKE_SIGMOIDS = (
        "this is no cross-entropy: the sums over the classes are made of samples, as where every "
        "label has a sigmoid; it looks like binary cross-entropy with as many labels as the head "
        "has outputs: say loss='bce' (--loss bce)"
    )
    LOOKS_LIKE_SOFTMAX = (
        "this is no loss with a sigmoid for each label, nor any other of which the sums over the "
        "outputs do not vanish: they do, as those of a softmax; say loss='cross_entropy' (--loss "
        "cross_entropy)"
    )
    DEFENSE_SUSPECTED = (
        "the gradient looks treated: noise was added, entries were set to zero or rounded to a "
        "grid, or it was scaled down (clipped)"
    )
    ILL_CONDITIONED = (
        "the equations for the counts are nearly singular: small errors of the gradient "
        "become large errors of the counts"
    )
    NO_BIAS = "the head has no bias gradient: attacks on the weight alone are weaker"
    NO_WEIGHT = (
        "of the head only the bias has a gradient, as the weight's was not sent or is zero: the "
        "counts follow from a rule of thumb for how much one sample weighs"
    )
    TOTAL_DOES_NOT_FIT = (
        "the restored counts do not add up to the batch size before they are made to: "
        "the assumptions of the attack do not hold for this network"
    )
    NOT_INTEGRAL = (
        "the restored counts lie far from whole numbers before they are rounded: "
        "the estimate is about as coarse as a guess between neighbors"
    )
    COUNTS_NOT_SURE = (
        "the counts are an estimate, and its errors leave other counts probable or are not known"
    )
    SCALE_DOES_NOT_FIT = (
        "the gradient is not at the scale of the loss and the batch size that were told: a summed "
        "loss, a loss scale, accumulated or averaged gradients, a server's learning rate, "
        "clipping, a temperature or another batch size; tell the loss and the recipe as they are"
    )
    SEVERAL_STEPS = (
        "the update adds up several local steps; the attack treats them as one step on all their "
        "samples, or follows the head alone"
    )
    ADAPTIVE_OPTIMIZER = (
        "the client's optimizer is not SGD (Adam or a relative): the change of the weights is no "
        "mean of gradients, and the attack reads it as one"
    )
    OUTSIDE_SIMULATIONS = (
        "the update is unlike those of all virtual clients: other data, another recipe, or a "
        "defense that was not told"
    )
    UNKNOWN_BATCH_SIZE = (
        "the batch size was not given: shares of the classes or a set of them, and counts only if "
        "the gradient shows their number, up to a common factor"
    )
    SET_NOT_SURE = (
        "which classes are there is not sure: without the batch size a small share cannot be told "
        "from an error, and some share is that small, or the errors are not known"
    )
    SET_ONLY = "the attack tells which classes are present, and not how many of each"
    INVISIBLE_SAMPLES = (
        "some samples leave no trace in the gradient at its precision, because the network is "
        "sure of their labels: no attack can restore those from it, and their counts are guessed"
    )
    INCOMPLETE = (
        "not every sample that the gradient shows was found for sure: the counts of the others are "
        "estimated"
    )
    ATTACKS_DISAGREE = (
        "estimates of the counts that rest on different assumptions contradict each other by more "
        "than their errors: the assumptions of one of them do not hold here"
    )
    TIME_LIMIT = "the time limit was reached before the search was over"
    BIAS_GIVES_NOTHING = (
        "the bias gives nothing away: Cox's partial likelihood does not change when all outputs "
        "are shifted, so that the bias has no gradient, and no attack of labelleak tells events "
        "from that of the weight"
    )
    LABELS_DO_NOT_FIT = (
        "the restored counts contradict the labels given to score by: other samples were trained "
        "on (drawn with replacement, another partition), or a fact told of the training is wrong"
    )

    @property
    def text(self) -> str:
        """The explanation."""
        return str(self.value)


UNRELIABLE = frozenset(
    {
        Flag.SUMS_NOT_ZERO,
        Flag.LOOKS_LIKE_SIGMOIDS,
        Flag.LOOKS_LIKE_SOFTMAX,
        Flag.ILL_CONDITIONED,
        Flag.NO_WEIGHT,
        Flag.TOTAL_DOES_NOT_FIT,
        Flag.NOT_INTEGRAL,
        Flag.COUNTS_NOT_SURE,
        Flag.SEVERAL_STEPS,
        Flag.ADAPTIVE_OPTIMIZER,
        Flag.OUTSIDE_SIMULATIONS,
        Flag.SET_NOT_SURE,
        Flag.INCOMPLETE,
        Flag.ATTACKS_DISAGREE,
        Flag.TIME_LIMIT,
    }
)
"""Flags under which a low score is no evidence that the labels are safe."""


# Most classes and counts that a notebook or a line shows.
_MOST_SHOWN, _MOST_LISTED = 40, 12

NORMAL_QUANTILE = 1.959963984540054
"""Standard errors either side of an estimate that a 95 % interval spans."""


@dataclass(frozen=True, eq=False)
class Restoration:
    """The labels that an attack restored, and how sure it is.

    Attributes:
        present: Whether each class is in the batch, bool, shape (classes,).
        counts: Number of instances of each class, int64, shape (classes,), non-negative, summing
            to the number of instances of the update; None when the attack yields a set only or
            when that number is unknown.
        rounded: The attack's own counts before their sum is repaired, int64, shape (classes,);
            what the published figures are computed from. None where the attack yields none.
        raw: The real-valued solution, float64, shape (classes,), unit instances (or proportions
            where the number of instances is unknown). None where the attack yields none.
        standard_errors: Estimated standard error of every entry of `raw`, float64, shape
            (classes,), in the unit of `raw`; scaled where it rests on few observations so that
            `intervals` keeps its level. None where the attack estimates none.
        proportions: Share of each class in the batch, float64, shape (classes,), non-negative,
            summing to one; None for a set.
        class_embeddings: Restored mean embedding of each class, float64, shape
            (classes, features), or None.
        class_probabilities: Restored mean prediction for samples of each class, float64, shape
            (classes, classes), row = true class, or None.
        certified: Whether the counts rebuild the gradient exactly, so that they are proven.
        flags: Why the verdict may be unreliable, in a fixed order.
        embeddings: Restored embeddings of single samples, float64, shape (found, features), or
            None. A sample that is in the batch several times has one row.
        embedding_labels: Class of each row of `embeddings`, int64, shape (found,), or None.
        certain: Counts of the samples that were found and whose label is sure, int64, shape
            (classes,); the rest of `counts` is estimated. None where the attack restores no single
            samples.
        invisible: How many samples leave no trace in the gradient at its precision, or none that
            settles their label; None where it is not known.
        attack: Registered name of the attack that spoke, stamped by the table of attacks.
        multi_label: Whether a sample has a set of labels: classes are then labels, each count is
            at most the number of samples, and neither counts nor shares have a common sum.
        samples: Number of samples K of a multi-label batch, or None.
        label_sets: Label sets of single samples, bool, shape (found, labels), or None.

    Examples:
        >>> import torch
        >>> found = Restoration(present=torch.tensor([True, False]), counts=torch.tensor([2, 0]))
        >>> found.labels().tolist()
        [0, 0]
        >>> found.unreliable
        False
    """

    present: Bool[Tensor, " classes"]
    counts: Int[Tensor, " classes"] | None = None
    rounded: Int[Tensor, " classes"] | None = None
    raw: Float[Tensor, " classes"] | None = None
    standard_errors: Float[Tensor, " classes"] | None = None
    proportions: Float[Tensor, " classes"] | None = None
    class_embeddings: Float[Tensor, "classes features"] | None = None
    class_probabilities: Float[Tensor, "classes classes"] | None = None
    certified: bool = False
    flags: tuple[Flag, ...] = ()
    embeddings: Float[Tensor, "found features"] | None = None
    embedding_labels: Int[Tensor, " found"] | None = None
    certain: Int[Tensor, " classes"] | None = None
    invisible: int | None = None
    attack: str = ""
    multi_label: bool = False
    samples: int | None = None
    label_sets: Bool[Tensor, "found labels"] | None = None

    def labels(self) -> Int[Tensor, " batch"]:
        """The restored labels of the batch, sorted, int64, shape (instances,).

        Raises:
            ValueError: The restoration has no counts, only a set of classes or proportions; or
                samples have sets of labels.
        """
        if self.multi_label:
            raise ValueError("samples have sets of labels here: see `counts` and `label_sets`")
        if self.counts is None:
            raise ValueError(
                f"attack {self.attack!r} restored no counts here: see `present` and `proportions`"
            )
        classes = torch.arange(self.counts.numel(), device=self.counts.device)
        return classes.repeat_interleave(self.counts)

    @property
    def intervals(self) -> Float[Tensor, "classes 2"] | None:
        """A 95 % interval of every count: `raw` less and plus 1.96 standard errors.

        Float64, shape (classes, 2), lower and upper end, real-valued and in the unit of `raw`; None
        where the attack estimates no standard errors.
        """
        if self.raw is None or self.standard_errors is None:
            return None
        margin = NORMAL_QUANTILE * self.standard_errors
        return torch.stack([self.raw - margin, self.raw + margin], dim=1)

    @property
    def unreliable(self) -> bool:
        """Whether a flag says that a low score would prove nothing."""
        return any(flag in UNRELIABLE for flag in self.flags)

    def __repr__(self) -> str:
        """What was restored, in a line."""
        told = self.present.nonzero()[:, 0] if self.counts is None else self.counts
        what = "present" if self.counts is None else "counts"
        listed = ", ".join(map(str, told[:_MOST_LISTED].tolist()))
        more = f", ... of {self.present.numel()} classes" if len(told) > _MOST_LISTED else ""
        proven = ", certified" if self.certified else ""
        flags = f", flags: {', '.join(flag.name.lower() for flag in self.flags)}"
        return f"Restoration({self.attack or 'no attack'}: {what} [{listed}{more}]{proven}" + (
            f"{flags})" if self.flags else ")"
        )

    def _repr_html_(self) -> str:
        """A chart for notebooks: the counts with their intervals, and the flags in words."""
        values = self.counts if self.counts is not None else self.proportions
        shares = self.counts is None
        if values is None:
            values, shares = self.present.long(), False
        shown = self.present.nonzero()[:, 0].tolist()
        if values.numel() <= _MOST_SHOWN:
            shown = list(range(values.numel()))
        intervals = self.intervals
        bars = []
        for label in shown[:_MOST_SHOWN]:
            value = float(values[label])
            low = high = None
            if intervals is not None:
                low, high = (max(0.0, float(end)) for end in intervals[label])
            ends = "" if low is None else f" ({low:.2g} to {high:.2g})"
            text = f"{value:.1%}" if shares else f"{value:.0f}"
            bars.append(Bar(str(label), value, low, high, text + ends))
        proven = "proven: they rebuild the gradient" if self.certified else "an estimate"
        what = "shares" if shares else "counts" if self.counts is not None else "classes present"
        notes = [f"{flag.name.lower()}: {flag.text}" for flag in self.flags]
        if len(shown) > _MOST_SHOWN:
            notes.insert(0, f"and {len(shown) - _MOST_SHOWN} more classes")
        return bars_html(f"{self.attack or 'Restoration'}: {what} by class, {proven}", bars, notes)

    def to_pandas(self) -> Any:
        """One row for each class: present, count, share, estimate and the ends of its interval.

        Returns:
            A ``pandas.DataFrame`` with the index ``class``; columns of what the attack does not
            give are left out.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        columns = {
            "present": self.present,
            "count": self.counts,
            "share": self.proportions,
            "estimate": self.raw,
            "low": None if self.intervals is None else self.intervals[:, 0],
            "high": None if self.intervals is None else self.intervals[:, 1],
        }
        known = {name: value.cpu().numpy() for name, value in columns.items() if value is not None}
        return pd.DataFrame(known, index=pd.RangeIndex(self.present.numel(), name="class"))
