"""Samplers that draw a batch: the label distributions that attacks are measured on.

Every sampler takes the labels of a data set, a batch size K and a seed, and returns K int64 indices
into the labels, in random order. The same seed gives the same batch. Without `replacement` no
sample occurs twice. With it, a class with too few samples uses each of them about equally often
(`random` and `random_classes` draw independently), which makes sense for photographs that are
cropped at random.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

Seed = int | torch.Generator


class Sampler(Protocol):
    """Signature of every sampler; some have further options."""

    def __call__(
        self,
        labels: Int64[Tensor, " samples"],
        batch_size: int,
        seed: Seed,
        *,
        replacement: bool = False,
    ) -> Int64[Tensor, " batch"]:
        """Draw the indices of one batch."""


def random(
    labels: Int64[Tensor, " samples"], batch_size: int, seed: Seed, *, replacement: bool = False
) -> Int64[Tensor, " batch"]:
    """Samples drawn uniformly from the whole data set; iLRG's standard setting.

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        replacement: draw independently. Labels then follow the data set's distribution however
            few samples there are.

    Returns:
        K indices.

    Raises:
        ValueError: K is not positive, or larger than the data set without replacement.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(random(labels, 6, seed=0))
        6
    """
    generator = _start(labels, batch_size, seed)
    return _uniform(torch.arange(len(labels)), batch_size, generator, replacement, "the data set")


def balanced(
    labels: Int64[Tensor, " samples"],
    batch_size: int,
    seed: Seed,
    *,
    num_classes: int | None = None,
    replacement: bool = False,
) -> Int64[Tensor, " batch"]:
    """Every class floor(K / C) or ceil(K / C) times; which ones have one more is drawn.

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        num_classes: C, so many classes are drawn; None for all that occur.
        replacement: use samples again where a class has too few.

    Returns:
        K indices.

    Raises:
        ValueError: K or `num_classes` is not positive, there are not so many classes, or a class
            has too few samples.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> torch.bincount(labels[balanced(labels, 8, seed=0)]).tolist()
        [2, 2, 2, 2]
    """
    generator = _start(labels, batch_size, seed)
    sizes = torch.bincount(labels)
    chosen = sizes.nonzero().flatten()
    if num_classes is not None:
        chosen = _classes(labels, num_classes, generator)
    counts = torch.zeros_like(sizes)
    counts[chosen] = batch_size // len(chosen)
    more = torch.randperm(len(chosen), generator=generator)[: batch_size % len(chosen)]
    counts[chosen[more]] += 1
    return _take(labels, counts, generator, replacement)


def unique(
    labels: Int64[Tensor, " samples"], batch_size: int, seed: Seed, *, replacement: bool = False
) -> Int64[Tensor, " batch"]:
    """K different classes, one sample of each.

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        replacement: makes no difference here: no class is used twice.

    Returns:
        K indices.

    Raises:
        ValueError: K is not positive, or larger than the number of classes that occur.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> sorted(labels[unique(labels, 4, seed=0)].tolist())
        [0, 1, 2, 3]
    """
    generator = _start(labels, batch_size, seed)
    counts = torch.zeros_like(torch.bincount(labels))
    counts[_classes(labels, batch_size, generator)] = 1
    return _take(labels, counts, generator, replacement)


def single_class(
    labels: Int64[Tensor, " samples"], batch_size: int, seed: Seed, *, replacement: bool = False
) -> Int64[Tensor, " batch"]:
    """All K samples of one class ("extreme"), drawn from the classes that have K samples.

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        replacement: draw from all classes, and use samples again where the class has too few.

    Returns:
        K indices.

    Raises:
        ValueError: K is not positive, or no class has K samples.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(labels[single_class(labels, 5, seed=0)].unique())
        1
    """
    generator = _start(labels, batch_size, seed)
    sizes = torch.bincount(labels)
    able = (sizes >= (1 if replacement else batch_size)).nonzero().flatten()
    if len(able) == 0:
        raise ValueError(
            f"no class has {batch_size} samples (the largest has {sizes.max()}): "
            "take a smaller batch, or replacement=True"
        )
    counts = torch.zeros_like(sizes)
    counts[able[torch.randint(len(able), (1,), generator=generator)]] = batch_size
    return _take(labels, counts, generator, replacement)


def random_classes(
    labels: Int64[Tensor, " samples"],
    batch_size: int,
    seed: Seed,
    *,
    num_classes: int = 10,
    replacement: bool = False,
) -> Int64[Tensor, " batch"]:
    """Samples drawn uniformly from those of a random subset of the classes ("random2").

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        num_classes: size of the subset; the batch need not contain all of them.
        replacement: draw independently.

    Returns:
        K indices.

    Raises:
        ValueError: K or `num_classes` is not positive or too large for the data set.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(labels[random_classes(labels, 8, seed=0, num_classes=2)].unique()) <= 2
        True
    """
    generator = _start(labels, batch_size, seed)
    chosen = _classes(labels, num_classes, generator)
    pool = torch.isin(labels, chosen).nonzero().flatten()
    return _uniform(pool, batch_size, generator, replacement, f"{num_classes} classes drawn")


def imbalanced(
    labels: Int64[Tensor, " samples"],
    batch_size: int,
    seed: Seed,
    *,
    classes: Sequence[int] | None = None,
    replacement: bool = False,
) -> Int64[Tensor, " batch"]:
    """Three classes with 1, K - 2 and 1 samples (iLRG, Table 5: classes 0, 18, 92).

    Args:
        labels: class of each sample of the data set.
        batch_size: number of samples K, at least 3.
        seed: integer, or a CPU generator that goes on from where it is.
        classes: the three, the one with K - 2 samples in the middle; None: drawn.
        replacement: use samples again where a class has too few.

    Returns:
        K indices.

    Raises:
        ValueError: K is less than 3, there are not three different classes, or one has too few
            samples.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(imbalanced(labels, 8, seed=0))
        8
    """
    generator = _start(labels, batch_size, seed)
    if batch_size < 3:
        raise ValueError(f"three classes need a batch of at least 3 samples, not {batch_size}")
    counts = torch.zeros_like(torch.bincount(labels))
    chosen = _classes(labels, 3, generator) if classes is None else torch.tensor(classes)
    if len(chosen) != 3 or len(set(chosen.tolist())) != 3:
        raise ValueError(f"imbalanced takes three different classes, not {classes}")
    if chosen.min() < 0 or chosen.max() >= len(counts):
        raise ValueError(f"classes {classes} are not all in the data (0 to {len(counts) - 1})")
    counts[chosen] = torch.tensor([1, batch_size - 2, 1])
    return _take(labels, counts, generator, replacement)


def dirichlet(
    labels: Int64[Tensor, " samples"],
    batch_size: int,
    seed: Seed,
    *,
    alpha: float = 0.5,
    replacement: bool = False,
) -> Int64[Tensor, " batch"]:
    """Class shares from a symmetric Dirichlet distribution, counts multinomial with these shares.

    Args:
        labels: class of each sample of the data set; the shares are over the classes that occur.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        alpha: concentration; near 0 one class has everything, large values approach equal shares.
        replacement: use samples again where a class has too few.

    Returns:
        K indices.

    Raises:
        ValueError: K or `alpha` is not positive, or a class has too few samples.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(dirichlet(labels, 8, seed=0, replacement=True))
        8
    """
    generator = _start(labels, batch_size, seed)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be a positive number, not {alpha}")
    # torch has no Dirichlet distribution that takes a generator
    numbers = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    counts = torch.bincount(labels)
    present = counts.nonzero().flatten()
    shares = numbers.dirichlet(np.full(len(present), alpha))
    counts[present] = torch.from_numpy(numbers.multinomial(batch_size, shares))
    return _take(labels, counts, generator, replacement)


SAMPLERS: dict[str, Sampler] = {
    sampler.__name__: sampler
    for sampler in (random, balanced, unique, single_class, random_classes, imbalanced, dirichlet)
}


def draw(
    name: str,
    labels: Int64[Tensor, " samples"],
    batch_size: int,
    seed: Seed,
    **options: Any,
) -> Int64[Tensor, " batch"]:
    """Draw a batch by the name of the sampler.

    Args:
        name: a key of `SAMPLERS`.
        labels: class of each sample of the data set.
        batch_size: number of samples K.
        seed: integer, or a CPU generator that goes on from where it is.
        **options: those of the sampler: `replacement`, `num_classes`, `classes`, `alpha`.

    Returns:
        K indices into `labels`.

    Raises:
        ValueError: an unknown name, or what the sampler raises.
        TypeError: an option that the sampler does not have.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(draw("random", labels, 6, seed=0))
        6
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(sorted(SAMPLERS))}")
    return SAMPLERS[name](labels, batch_size, seed, **options)


def some_of_each_class(
    labels: Int64[Tensor, " samples"], number: int, seed: int
) -> Int64[Tensor, " chosen"]:
    """The same number of samples of each class, drawn at random.

    Args:
        labels: class of each sample of the data set.
        number: samples of each class; all samples of a class that has fewer.
        seed: decides which samples.

    Returns:
        Indices into `labels`, ascending.

    Examples:
        >>> labels = torch.arange(40) % 4
        >>> len(some_of_each_class(labels, 2, seed=0))
        8
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[rank < number].sort().values


def _start(labels: Tensor, batch_size: int, seed: Seed) -> torch.Generator:
    """Check the shared arguments, and make the seed a generator."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if len(labels) == 0:
        raise ValueError("the data set has no samples")
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(seed)


def _classes(labels: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw different classes among those that occur."""
    present = torch.bincount(labels).nonzero().flatten()
    if not 1 <= number <= len(present):
        raise ValueError(f"cannot draw {number} different classes: the data has {len(present)}")
    return present[torch.randperm(len(present), generator=generator)[:number]]


def _uniform(
    pool: Tensor, batch_size: int, generator: torch.Generator, replacement: bool, what: str
) -> Tensor:
    if replacement:
        return pool[torch.randint(len(pool), (batch_size,), generator=generator)]
    if batch_size > len(pool):
        raise ValueError(
            f"{what} has only {len(pool)} samples for a batch of {batch_size}: "
            "take a smaller batch, or replacement=True"
        )
    return pool[torch.randperm(len(pool), generator=generator)[:batch_size]]


def _take(labels: Tensor, counts: Tensor, generator: torch.Generator, replacement: bool) -> Tensor:
    """Draw `counts[c]` samples of each class c, and shuffle them."""
    sizes = torch.bincount(labels, minlength=len(counts))
    short = (counts > sizes) if not replacement else (counts > 0) & (sizes == 0)
    if short.any():
        first = int(short.nonzero()[0])
        raise ValueError(
            f"class {first} has only {sizes[first]} samples, {counts[first]} are needed: "
            "take a smaller batch, or replacement=True"
        )
    # Samples in random order, sorted by class: class c starts at starts[c].
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    chosen = torch.repeat_interleave(counts)
    rank = torch.arange(len(chosen)) - (counts.cumsum(0) - counts)[chosen]
    picked = order[starts[chosen] + rank % sizes[chosen]]
    return picked[torch.randperm(len(picked), generator=generator)]
