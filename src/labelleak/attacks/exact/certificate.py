"""Whether samples rebuild the gradient so exactly that their labels are proven."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact.atoms import Atoms, excess, likely_labels
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.factors import Factors
from labelleak.attacks.exact.joint import column_scale, fit

_POLISHING = 40
_MOST_UNKNOWNS = 3000
# A sample counts as seen if the gradient would change by so many times its errors without it.
_SEEN = 10.0
# Largest relative error of a q that is taken for the sample's.
_DIFFERENT = 0.05
# A hypothesis is excluded if its q differ so many times more than those of the best one do, and by
# more than the fit's own exactness.
_WORSE = 10.0
_FITS = 1e-3
# Share of the features that are zero beyond those that a mixture may have, and their least number.
_SPARSE = 0.1
_FEW_ZEROS = 10
_COMPETITION_STEPS = 40
# Of the equations of all hypotheses that are fitted at once.
_ENTRIES = 2**23


@dataclass(frozen=True)
class Judgement:
    """What a set of samples proves.

    Attributes:
        atoms: The samples, fitted to the gradient together.
        times: How often each is in the batch, shape (atoms,).
        seen: Whether each stands clear of the errors of the gradient, shape (atoms,).
        rebuilt: Whether together they rebuild the gradient up to rounding.
        cost: What the joint fit leaves.
    """

    atoms: Atoms
    times: Int[Tensor, " atoms"]
    seen: Bool[Tensor, " atoms"]
    rebuilt: bool
    cost: float


def judge(factors: Factors, atoms: Atoms, divisor: float, rounding: float) -> Judgement:
    """Fit the samples together, and compare what they leave of the gradient with its rounding.

    Args:
        factors: Of the gradient.
        atoms: As many samples as its rank.
        divisor: D.
        rounding: Typical rounding error of one entry of G.

    Returns:
        The judgement.
    """
    times = (divisor / atoms.inverse_weights).round().clamp_min(1.0)
    shares = times / divisor
    points = atoms.embeddings @ factors.right
    scale = column_scale(factors)
    # Of many samples those are proven that were found as exactly as need be.
    steps = _POLISHING if len(atoms) * factors.directions.shape[1] <= _MOST_UNKNOWNS else 0
    for _ in range(2):
        fitted, costs = fit(
            factors, points[None], atoms.labels[None], shares[None], steps=steps, scale=scale
        )
        points = fitted[0]
        # Now weigh every column by its own errors, those of the client's arithmetic included.
        q = factors.errors(points, atoms.labels) * shares[:, None]
        slips = _slips(factors, points, q, shares)
        floor = factors.matrix.shape[0] * factors.noise**2
        column_errors = (floor + (slips[:, None] * points).square().sum(dim=0)).sqrt()
        scale = 1.0 / column_errors
    embeddings = points @ factors.right.T
    left_over = factors.matrix - q.T @ embeddings
    allowed = left_over.numel() * rounding**2 + float(
        (slips * embeddings.norm(dim=1)).square().sum()
    )
    seen = _seen(factors, points, q, slips)
    return Judgement(
        Atoms(embeddings, atoms.labels, divisor / times),
        times.long(),
        seen,
        rebuilt=float(left_over.square().sum()) <= allowed,
        cost=float(costs[0]),
    )


def _slips(factors: Factors, points: Tensor, q: Tensor, shares: Tensor) -> Float[Tensor, " atoms"]:
    """Size of the client's errors in each q: of its logits, and of one less a probability."""
    embeddings = points @ factors.right.T
    logits = factors.epsilon * embeddings.norm(dim=1) * float(factors.layer.norm(dim=1).max())
    slips: Tensor = q.norm(dim=1) * logits + factors.epsilon * shares
    return slips


def _seen(factors: Factors, points: Tensor, q: Tensor, slips: Tensor) -> Bool[Tensor, " atoms"]:
    """Whether each sample stands clear of the errors, and is itself what the gradient shows.

    The distance of G to the matrices that the other q and embeddings span is one over the product
    of the norms of a sample's dual vectors. And the embeddings alone determine every q by a linear
    system; the head's own prediction for the embedding has to be the same.
    """
    error = _noise_in_errors(factors, q)
    solved = torch.linalg.solve(points.T, (factors.left * factors.values).T)
    apart = (solved - q).norm(dim=1)
    allowed = (_SEEN * (error + slips)).clamp_max(_DIFFERENT * q.norm(dim=1))
    seen: Tensor = _is_clear(factors, points, q, slips) & (apart <= allowed)
    return seen


def clear(factors: Factors, atoms: Atoms) -> Bool[Tensor, " atoms"]:
    """Which samples stand clear of the errors of the gradient.

    Args:
        factors: Of the gradient.
        atoms: Some of its samples.

    Returns:
        Bool, shape (atoms,). The label of one that does not may be any.
    """
    points = atoms.embeddings @ factors.right
    shares = 1.0 / atoms.inverse_weights
    q = factors.errors(points, atoms.labels) * shares[:, None]
    return _is_clear(factors, points, q, _slips(factors, points, q, shares))


def too_weak(rest: Factors, atoms: Atoms) -> int:
    """How many of the samples that were not found are too weak for that.

    Args:
        rest: Factors of what is left.
        atoms: The samples found.
    """
    lengths = atoms.embeddings.norm(dim=1) / atoms.inverse_weights
    slip = rest.epsilon * float(lengths.max()) if len(atoms) else 0.0
    return int((rest.values < _SEEN * slip).sum())


def _noise_in_errors(factors: Factors, q: Tensor) -> Float[Tensor, " atoms"]:
    """What the noise of G adds to each q that is solved for."""
    dual = (q @ factors.left) / factors.values
    noise: Tensor = factors.noise * factors.matrix.shape[0] ** 0.5 * dual.norm(dim=1)
    return noise


def _is_clear(factors: Factors, points: Tensor, q: Tensor, slips: Tensor) -> Bool[Tensor, " atoms"]:
    dual = (points / factors.values).norm(dim=1)
    beside_noise = _SEEN * _noise_in_errors(factors, q) * dual < 1.0
    result: Tensor = beside_noise & (q.norm(dim=1) > _SEEN * slips)
    return result


def determined_by_zeros(factors: Factors, atoms: Atoms) -> bool:
    """Whether zeros alone single out every embedding, and every label with it.

    A mixture of the rank's embeddings can be made zero in rank - 1 features, and is zero in more
    by chance only. Embeddings with many more zeros are the only ones, whatever the head predicts.
    Every q then follows linearly, and its one negative entry is the label.

    Args:
        factors: Of the gradient.
        atoms: As many samples as its rank, as the search found them: the joint fit trades zeros
            for predictions.
    """
    embeddings = atoms.embeddings[:, :-1] if factors.affine else atoms.embeddings
    points = atoms.embeddings @ factors.right
    errors_allowed = factors.noise * (points / factors.values).norm(dim=1, keepdim=True)
    alive = factors.right[: embeddings.shape[1]] * factors.values
    alive = alive.norm(dim=1) > 6.0 * factors.noise * factors.rank**0.5
    zeros = (embeddings.abs() <= 6.0 * errors_allowed) & alive
    # Zero has to mean something: most other entries stand far above the errors.
    large = (embeddings.abs() > 60.0 * errors_allowed) & alive
    least = factors.rank - 1 + max(_FEW_ZEROS, int(_SPARSE * int(alive.sum())))
    enough = (zeros.sum(dim=1) >= least) & (large.sum(dim=1) >= _FEW_ZEROS)
    solved, failed = torch.linalg.solve_ex(points.T, (factors.left * factors.values).T)
    sizes = solved.norm(dim=1)
    others = solved.scatter(1, atoms.labels[:, None], 0.0).amin(dim=1)
    own = solved.gather(1, atoms.labels[:, None])[:, 0]
    signs = (own < -0.5 * sizes) & (others > -_DIFFERENT * sizes)
    return int(failed) == 0 and bool((enough & signs).all())


def other_label(factors: Factors, atoms: Atoms, divisor: float | None) -> Bool[Tensor, " atoms"]:
    """Whether the embedding of a sample goes with another label as well.

    Predictions that are sure and wrong are differences of two unit vectors. These span all other
    differences of the same classes, and say nothing of the embedding: labels may then be exchanged
    between samples, and other embeddings rebuild the same gradient.

    Args:
        factors: Of the gradient.
        atoms: As many samples as its rank.
        divisor: D; None where it is unknown.
    """
    points, labels = likely_labels(factors, atoms.embeddings @ factors.right)
    which = torch.arange(len(atoms)).to(labels).repeat_interleave(len(labels) // len(atoms))
    other = labels != atoms.labels[which]
    goes = excess(factors, points[other], labels[other], divisor)[0] <= 1.0
    found = torch.zeros_like(atoms.labels, dtype=torch.bool)
    found[which[other][goes]] = True
    return found


def no_competitor(factors: Factors, judged: Judgement, divisor: float, clock: Clock) -> bool:
    """Whether every hypothesis with one label changed leaves far more of the gradient.

    Needed where there are few classes, so that single samples have no equations to spare. Without
    the time to try them all, nothing is proven.
    """
    atoms, classes = judged.atoms, factors.matrix.shape[0]
    number = len(atoms)
    points = atoms.embeddings @ factors.right
    which = torch.arange(number).repeat_interleave(classes).to(atoms.labels)
    others = torch.arange(classes).repeat(number).to(atoms.labels)
    changed = others != atoms.labels[which]
    which, others = which[changed], others[changed]
    rows = torch.arange(len(which)).to(which)
    labels = atoms.labels.repeat(len(which), 1)
    labels[rows, which] = others
    starts = points.repeat(len(which), 1, 1)
    shares = (judged.times / divisor).repeat(len(which), 1)
    steps = torch.nn.functional.normalize(
        (factors.head - factors.head.mean(dim=0)) @ factors.directions, dim=1
    )
    size = points.norm(dim=1).median()
    moved = factors.origin + size * steps[others] @ factors.directions.T
    starts[rows, which] = moved
    # Held to the same test as the samples that are to be certified.
    own = _mismatch(factors, points[None], atoms.labels[None], shares[:1])
    least = (_WORSE * own).clamp_min(_FITS)
    together = max(1, _ENTRIES // (number * max(1, factors.directions.shape[1])) ** 2)
    for start in range(0, len(which), together):
        if clock.is_over:
            return False
        part = slice(start, start + together)
        reached, _ = fit(
            factors, starts[part], labels[part], shares[part], steps=_COMPETITION_STEPS
        )
        if not bool((_mismatch(factors, reached, labels[part], shares[part]) > least).all()):
            return False
    return True


def _mismatch(
    factors: Factors,
    points: Float[Tensor, "hypotheses samples rank"],
    labels: Int[Tensor, "hypotheses samples"],
    shares: Float[Tensor, "hypotheses samples"],
) -> Float[Tensor, " hypotheses"]:
    """Largest relative difference of the q that embeddings determine and those predicted."""
    q = factors.errors(points.flatten(0, 1), labels.flatten()).view(*labels.shape, -1)
    q = q * shares[:, :, None]
    right = (factors.left * factors.values).T.expand(len(labels), -1, -1)
    solved, failed = torch.linalg.solve_ex(points.transpose(1, 2), right)
    mismatch = ((solved - q).norm(dim=2) / q.norm(dim=2)).amax(dim=1)
    return torch.where((failed == 0) & torch.isfinite(mismatch), mismatch, torch.inf)
