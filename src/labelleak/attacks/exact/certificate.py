"""The certificate: whether samples rebuild the gradient so exactly that labels are proven."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.acceptance import excess, likely_labels
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.descent import descend
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.joint_fit import column_scale, fit_jointly
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.sparsity import have_no_other

_POLISHING_STEPS = 40
_COMPETITION_STEPS = 40
# Steps from the embedding of a sample to where another label fits.
_MOVES = 8
# With more unknowns, samples times coordinates, samples are judged as they were found.
_MOST_UNKNOWNS = 2000
# The same for the entries of their derivatives, unknowns times classes: 512 MB.
_MOST_SLOPES = 2**26
# Most entries of the equations of hypotheses in memory at once: 64 MB.
_ENTRIES = 2**23
# Most entries of the predictions that are tried between two looks at the clock.
_TRIED_ENTRIES = 2**20


@dataclass(frozen=True)
class Judgment:
    """How well a set of samples rebuilds the gradient.

    Attributes:
        samples: The samples, fitted to the gradient together.
        times: How often each is in the batch, int64, shape (samples,).
        seen: Whether each stands clear of the errors of the gradient, bool, shape (samples,).
        rebuilt: Whether together they rebuild the gradient up to rounding.
    """

    samples: Samples
    times: Int[Tensor, " samples"]
    seen: Bool[Tensor, " samples"]
    rebuilt: bool


def judge(
    factors: HeadFactors, samples: Samples, divisor: float, rounding: float, clock: Clock
) -> Judgment:
    """Fit the samples together, and compare what they leave of the gradient with its rounding.

    Args:
        factors: Factors of the head's gradient.
        samples: As many samples as its rank.
        divisor: D.
        rounding: Typical rounding error of one entry of G.
        clock: Time limit; samples that there is no time to fit are judged as they were found.

    Returns:
        The judgment.
    """
    times = (divisor / samples.inverse_weights).round().clamp_min(1.0)
    shares = times / divisor
    points = samples.inputs @ factors.right
    scale = column_scale(factors)
    unknowns = len(samples) * factors.unknowns
    few = unknowns <= _MOST_UNKNOWNS and unknowns * factors.matrix.shape[0] <= _MOST_SLOPES
    for _ in range(2):
        [points], _ = fit_jointly(
            factors,
            points[None],
            samples.labels[None],
            shares[None],
            steps=_POLISHING_STEPS if few and not clock.is_over else 0,
            clock=clock,
            scale=scale,
        )
        # Then weigh every column by its errors, including those of the client's arithmetic.
        q = factors.logit_gradients(points, samples.labels) * shares[:, None]
        slips = _slips(factors, points, q, shares)
        floor = factors.matrix.shape[0] * factors.noise**2
        column_errors = (floor + (slips[:, None] * points).square().sum(dim=0)).sqrt()
        scale = 1.0 / column_errors
    inputs = points @ factors.right.T
    left_over = factors.matrix - q.T @ inputs
    allowed = left_over.numel() * rounding**2 + float((slips * inputs.norm(dim=1)).square().sum())
    return Judgment(
        Samples(inputs, samples.labels, divisor / times),
        times.long(),
        _seen(factors, points, q, slips),
        rebuilt=float(left_over.square().sum()) <= allowed,
    )


def _slips(
    factors: HeadFactors, points: Tensor, q: Tensor, shares: Tensor
) -> Float[Tensor, " samples"]:
    """Size of the client's rounding errors in each q, from its logits and from 1 - p."""
    inputs = points @ factors.right.T
    logits = factors.epsilon * inputs.norm(dim=1) * float(factors.layer.norm(dim=1).max())
    slips: Tensor = q.norm(dim=1) * logits + factors.epsilon * shares
    return slips


def _seen(
    factors: HeadFactors, points: Tensor, q: Tensor, slips: Tensor
) -> Bool[Tensor, " samples"]:
    """Whether each sample stands clear of the errors, and the gradient has the same q for it.

    The embeddings alone determine every q by a linear system. The head's prediction for the
    embedding has to agree with it.
    """
    error = _noise_in_gradients(factors, q)
    solved = torch.linalg.solve(points.T, (factors.left * factors.values).T)
    apart = (solved - q).norm(dim=1)
    allowed = tolerances.CLEAR * (error + slips)
    allowed = allowed.clamp_max(tolerances.DIFFERENT * q.norm(dim=1))
    seen: Tensor = _is_clear(factors, points, q, slips) & (apart <= allowed)
    return seen


def clear_samples(factors: HeadFactors, samples: Samples) -> Bool[Tensor, " samples"]:
    """Which samples stand clear of the errors of the gradient.

    Args:
        factors: Factors of the head's gradient.
        samples: Some of its samples.

    Returns:
        Bool, shape (samples,). Any label may fit a sample that does not.
    """
    points = samples.inputs @ factors.right
    shares = 1.0 / samples.inverse_weights
    q = factors.logit_gradients(points, samples.labels) * shares[:, None]
    return _is_clear(factors, points, q, _slips(factors, points, q, shares))


def number_too_weak(rest: HeadFactors, samples: Samples) -> int:
    """How many of the samples that were not found are too weak to be found.

    Args:
        rest: Factors of the gradient minus the samples found.
        samples: The samples found, at least one.
    """
    slip = rest.epsilon * float((samples.inputs.norm(dim=1) / samples.inverse_weights).max())
    return int((rest.values < tolerances.CLEAR * slip).sum())


def _noise_in_gradients(factors: HeadFactors, q: Tensor) -> Float[Tensor, " samples"]:
    """Size of the errors in each q that the noise of G causes."""
    dual = (q @ factors.left) / factors.values
    noise: Tensor = factors.noise * factors.matrix.shape[0] ** 0.5 * dual.norm(dim=1)
    return noise


def _is_clear(
    factors: HeadFactors, points: Tensor, q: Tensor, slips: Tensor
) -> Bool[Tensor, " samples"]:
    # The distance of G from all gradients without a sample is one over the norms of its two duals.
    dual = (points / factors.values).norm(dim=1)
    beside_noise = tolerances.CLEAR * _noise_in_gradients(factors, q) * dual < 1.0
    result: Tensor = beside_noise & (q.norm(dim=1) > tolerances.CLEAR * slips)
    return result


def singled_out_by_zeros(factors: HeadFactors, samples: Samples) -> Bool[Tensor, " samples"]:
    """Which embeddings are determined by their zeros alone.

    A mixture of embeddings can be made zero in rank - 1 features; further zeros are chance. So
    embeddings with many more zeros, that no other vector of the row space has, are unique, whatever
    the head predicts.

    Args:
        factors: Factors of the head's gradient.
        samples: Some of its samples, as the search found them: a joint fit gives up zeros for
            better predictions.
    """
    embeddings = samples.inputs[:, :-1] if factors.affine else samples.inputs
    points = samples.inputs @ factors.right
    errors = factors.input_errors(points)
    alive = factors.right[: embeddings.shape[1]] * factors.values
    alive = alive.norm(dim=1) > tolerances.ZERO * factors.noise * factors.rank**0.5
    zeros = (embeddings.abs() <= tolerances.ZERO * errors) & alive
    # A zero means something only if other entries stand far above the errors.
    large = (embeddings.abs() > tolerances.NOT_ZERO * errors) & alive
    beyond = max(tolerances.FEWEST_ZEROS, int(tolerances.SHARE_OF_ZEROS * int(alive.sum())))
    enough = zeros.sum(dim=1) >= factors.rank - 1 + beyond
    enough &= large.sum(dim=1) >= tolerances.FEWEST_ZEROS
    features = factors.right[: embeddings.shape[1]]
    singled: Tensor = enough & have_no_other(features, factors.noise / factors.values, zeros)
    return singled


def determined_by_zeros(factors: HeadFactors, samples: Samples) -> bool:
    """Whether the zeros of the embeddings alone determine every embedding and label.

    Every q follows from the embeddings by a linear system, and its one negative entry is the label.

    Args:
        factors: Factors of the head's gradient.
        samples: As many samples as its rank, as the search found them.
    """
    points = samples.inputs @ factors.right
    solved, failed = torch.linalg.solve_ex(points.T, (factors.left * factors.values).T)
    sizes = solved.norm(dim=1)
    others = solved.scatter(1, samples.labels[:, None], 0.0).amin(dim=1)
    own = solved.gather(1, samples.labels[:, None])[:, 0]
    signs = (own < -0.5 * sizes) & (others > -tolerances.DIFFERENT * sizes)
    return int(failed) == 0 and bool((singled_out_by_zeros(factors, samples) & signs).all())


def fits_other_label(
    factors: HeadFactors, samples: Samples, divisor: float | None, clock: Clock
) -> Bool[Tensor, " samples"]:
    """Whether an embedding near a sample's, or without a bias its opposite, fits another label.

    If predictions are confident and wrong, every q is a difference of two unit vectors, which says
    nothing of the embedding. Such differences span those of other pairs of the same classes. Labels
    may then be exchanged between samples, and other embeddings rebuild the same gradient.

    Args:
        factors: Factors of the head's gradient.
        samples: Some of its samples.
        divisor: D, or None if it is unknown.
        clock: Time limit; where time is up for judging, too, other labels count as fitting.

    Returns:
        Bool, shape (samples,).
    """
    points = samples.inputs @ factors.right
    if not factors.affine:
        # q and e may both have the other sign.
        points = torch.cat([points, -points])
    late, within = clock.judging, tolerances.MOST_MISFIT
    which, labels = likely_labels(factors, points, within=within, clock=late)
    if late.is_over:
        return torch.ones_like(samples.labels, dtype=torch.bool)
    other = labels != samples.labels.repeat(2)[which]
    other |= which >= len(samples)
    which, labels = which[other], labels[other]
    fits = torch.ones_like(labels, dtype=torch.bool)
    together = max(1, _TRIED_ENTRIES // factors.left.shape[0])
    for first in range(0, len(labels), together):
        part = slice(first, first + together)
        tried = _fits(factors, points[which[part]], labels[part], divisor, late)
        # What was cut short, or not tried at all, is not excluded.
        if late.is_over:
            break
        fits[part] = tried
    found = torch.zeros_like(samples.labels, dtype=torch.bool)
    found[which[fits] % len(samples)] = True
    return found


def _fits(
    factors: HeadFactors,
    start: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
    clock: Clock,
) -> Bool[Tensor, " points"]:
    """Whether each embedding, or one near to it, fits a label as a sample of the batch does."""
    fits = excess(factors, start, labels, divisor)[0] <= 1.0
    if factors.spare_equations > 0:
        # An embedding that was fitted to one label is a little off for another that it goes with.
        enough = tolerances.ARRIVED**2
        moved, _ = descend(factors, start, labels, enough=enough, clock=clock, steps=_MOVES)
        # Short embeddings differ by little beside the one that stands for the bias.
        own = start - factors.origin * (start @ factors.right[-1])[:, None] * factors.affine
        near = (moved - start).norm(dim=1) <= tolerances.NEARBY * own.norm(dim=1)
        fits |= near & (excess(factors, moved, labels, divisor)[0] <= 1.0)
    return fits


def no_competitor(factors: HeadFactors, judged: Judgment, divisor: float, clock: Clock) -> bool:
    """Whether every hypothesis with one label changed fits the gradient far worse.

    Needed where there are so few classes that single samples have no spare equations.

    Args:
        factors: Factors of the head's gradient.
        judged: The samples, as many as its rank.
        divisor: D.
        clock: Time limit.

    Returns:
        False also if time is up before all hypotheses are tried.
    """
    samples, classes = judged.samples, factors.matrix.shape[0]
    number = len(samples)
    points = samples.inputs @ factors.right
    which = torch.arange(number).repeat_interleave(classes).to(samples.labels)
    others = torch.arange(classes).repeat(number).to(samples.labels)
    changed = others != samples.labels[which]
    which, others = which[changed], others[changed]
    rows = torch.arange(len(which)).to(which)
    labels = samples.labels.repeat(len(which), 1)
    labels[rows, which] = others
    starts = points.repeat(len(which), 1, 1)
    shares = (judged.times / divisor).repeat(len(which), 1)
    steps = torch.nn.functional.normalize(
        (factors.head - factors.head.mean(dim=0)) @ factors.directions, dim=1
    )
    size = points.norm(dim=1).median()
    starts[rows, which] = factors.origin + size * steps[others] @ factors.directions.T
    # Hypotheses have to pass the same test as the samples themselves.
    own = _mismatch(factors, points[None], samples.labels[None], shares[:1])
    least = (tolerances.WORSE * own).clamp_min(tolerances.FITS)
    together = max(1, _ENTRIES // (number * max(1, factors.unknowns)) ** 2)
    for start in range(0, len(which), together):
        if clock.is_over:
            return False
        part = slice(start, start + together)
        reached, _ = fit_jointly(
            factors, starts[part], labels[part], shares[part], steps=_COMPETITION_STEPS, clock=clock
        )
        # A fit that was cut short excludes nothing.
        if clock.is_over:
            return False
        if not bool((_mismatch(factors, reached, labels[part], shares[part]) > least).all()):
            return False
    return True


def _mismatch(
    factors: HeadFactors,
    points: Float[Tensor, "hypotheses samples rank"],
    labels: Int[Tensor, "hypotheses samples"],
    shares: Float[Tensor, "hypotheses samples"],
) -> Float[Tensor, " hypotheses"]:
    """Largest relative difference between the q that embeddings determine and those predicted."""
    q = factors.logit_gradients(points.flatten(0, 1), labels.flatten()).view(*labels.shape, -1)
    q = q * shares[:, :, None]
    right = (factors.left * factors.values).T.expand(len(labels), -1, -1)
    solved, failed = torch.linalg.solve_ex(points.transpose(1, 2), right)
    mismatch = ((solved - q).norm(dim=2) / q.norm(dim=2)).amax(dim=1)
    return torch.where((failed == 0) & torch.isfinite(mismatch), mismatch, torch.inf)
