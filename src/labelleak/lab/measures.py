"""Measures besides the scores: similarities and errors, coverage of intervals, baselines.

The similarities and errors are those of tables 1, 3 and 4 of the paper.

Class i of the batch has n_i samples with embeddings e_k and predictions p_k. ``e_i`` is their mean
embedding and ``p_i`` their mean prediction. ``g_i = mean((p_k[i] - 1) e_k)`` and
``h_i = mean(p_k[i] - 1)`` are the gradient of the loss of these samples alone, at row i of the head
and its bias. ``dW_i`` and ``db_i`` are row i of the whole batch's gradient, which the server sees.

Mean squared errors (MSE) and mean relative errors (MRE, ``|a - b| / |b|``, 0 where b is 0) are
means over the entries of a class's vector, and then over the classes in the batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.observation import Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Restoration
from labelleak.similarity import cosine_similarity

# The published error of the restored embeddings is cut off at this value for each class: otherwise
# one quotient by a bias gradient near zero would dominate the mean.
_EMBEDDING_MSE_BOUND = 10.0


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The true means of each class of a batch; rows of absent classes are zero.

    Attributes:
        counts: Number of samples n_i, int64, shape (classes,).
        embeddings: Mean embeddings e_i, float64, shape (classes, features).
        probabilities: Mean predictions p_i, float64, shape (classes, classes), row = true class.
        weight_gradient: Gradients g_i of each class's samples alone at its own row of the weight,
            float64, shape (classes, features).
        bias_gradient: The same at its own entry of the bias, h_i, float64, shape (classes,).
    """

    counts: Int[Tensor, " classes"]
    embeddings: Float[Tensor, "classes features"]
    probabilities: Float[Tensor, "classes classes"]
    weight_gradient: Float[Tensor, "classes features"]
    bias_gradient: Float[Tensor, " classes"]


class ClassSums:
    """Sums per class over a batch that comes in pieces, in memory that does not grow with it."""

    def __init__(self, classes: int, features: int, device: torch.device | str = "cpu") -> None:
        """Start with sums of zero.

        Args:
            classes: Number of classes C.
            features: Width m of the embedding.
            device: Device of the samples.
        """
        self._counts = torch.zeros(classes, dtype=torch.int64, device=device)
        self._embeddings = torch.zeros(classes, features, dtype=torch.float64, device=device)
        self._probabilities = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self._weight = torch.zeros_like(self._embeddings)
        self._bias = torch.zeros(classes, dtype=torch.float64, device=device)

    def add(
        self,
        embeddings: Float[Tensor, "samples features"],
        logits: Float[Tensor, "samples classes"],
        labels: Int[Tensor, " samples"],
    ) -> None:
        """Add samples.

        Args:
            embeddings: Inputs of the head, shape (samples, features).
            logits: Outputs of the head, shape (samples, classes).
            labels: True classes, int64, shape (samples,).
        """
        embeddings, probabilities = embeddings.double(), torch.softmax(logits.double(), dim=1)
        # Not p - 1, which cancels where the network is confident.
        others = probabilities.scatter(1, labels[:, None], 0.0).sum(dim=1)
        self._counts += torch.bincount(labels, minlength=self._counts.numel())
        self._embeddings.index_add_(0, labels, embeddings)
        self._probabilities.index_add_(0, labels, probabilities)
        self._weight.index_add_(0, labels, -others[:, None] * embeddings)
        self._bias.index_add_(0, labels, -others)

    def means(self) -> ClassMeans:
        """The means over the samples of each class so far."""
        number = self._counts.clamp_min(1)
        return ClassMeans(
            counts=self._counts.clone(),
            embeddings=self._embeddings / number[:, None],
            probabilities=self._probabilities / number[:, None],
            weight_gradient=self._weight / number[:, None],
            bias_gradient=self._bias / number,
        )


def cossim(found: Restoration, means: ClassMeans) -> dict[str, float]:
    """How well an attack restores each class's mean embedding and mean prediction.

    Args:
        found: A restoration with class embeddings and class probabilities.
        means: The true means.

    Returns:
        ``embedding_cossim`` and ``probability_cossim``: mean cosine similarities over the classes
        in the batch, by `labelleak.similarity.cosine_similarity`.

    References:
        Ma et al., ICLR 2023, table 1.
    """
    embeddings, probabilities = _restored(found)
    present = means.counts > 0
    return {
        "embedding_cossim": cosine_similarity(embeddings, means.embeddings, present),
        "probability_cossim": cosine_similarity(probabilities, means.probabilities, present),
    }


def approximations(
    found: Restoration, observation: Observation, means: ClassMeans
) -> dict[str, float]:
    """Errors of iLRG's approximations, and of the embeddings that result from them.

    Approximation 1 takes ``g_i`` for ``h_i e_i``, approximation 2 ``dW_i`` for ``n_i / K g_i`` and
    ``db_i`` for ``n_i / K h_i``, approximation 3 the mean prediction ``p_i`` for
    ``softmax(W e_i + b)``.

    Args:
        found: A restoration with class embeddings and class probabilities.
        observation: What the server saw: one step, a mean loss, a head with a bias.
        means: The true means.

    Returns:
        ``a1_mse``, ``a1_mre`` (relative to g_i); ``a2_weight_mse``, ``a2_weight_mre``,
        ``a2_bias_mse``, ``a2_bias_mre`` (relative to dW_i and db_i); ``a3_mse``, ``a3_mre``
        (relative to p_i); ``embedding_mse`` of the restored mean embeddings, at most 10 for each
        class, as in the published figures; ``embedding_cossim``.

    References:
        Ma et al., ICLR 2023, section 3 and table 3.
    """
    rows = means.counts > 0
    share = (means.counts / means.counts.sum()).double()
    gradient, head = observation.gradient, observation.head
    if gradient.bias is None or head.bias is None:
        raise ValueError("the approximations need a bias, and this head has none")
    predicted = torch.softmax(
        torch.addmm(head.bias.double(), means.embeddings, head.weight.double().T), dim=1
    )
    pairs = {
        "a1": (means.bias_gradient[:, None] * means.embeddings, means.weight_gradient),
        "a2_weight": (share[:, None] * means.weight_gradient, gradient.weight.double()),
        "a2_bias": ((share * means.bias_gradient)[:, None], gradient.bias.double()[:, None]),
        "a3": (predicted, means.probabilities),
    }
    errors = {}
    for name, (approximate, exact) in pairs.items():
        errors[f"{name}_mse"] = float(_square_errors(approximate[rows], exact[rows]).mean())
        errors[f"{name}_mre"] = float(_relative_errors(approximate[rows], exact[rows]).mean())
    embeddings, _ = _restored(found)
    mse = _square_errors(embeddings[rows], means.embeddings[rows])
    errors["embedding_mse"] = float(mse.clamp_max(_EMBEDDING_MSE_BOUND).mean())
    errors["embedding_cossim"] = cosine_similarity(embeddings, means.embeddings, rows)
    return errors


def soteria_embedding(observation: Observation, means: ClassMeans) -> dict[str, float]:
    """How well the gradient's own rows approximate the classes' mean embeddings.

    Soteria's authors take the row ``dW_i`` itself as a class's representation, where iLRG divides
    it by ``db_i``. For a class in the batch, the row points in the opposite direction.

    Args:
        observation: What the server saw.
        means: The true means.

    Returns:
        ``soteria_embedding_mse`` and ``soteria_embedding_cossim`` of dW_i against e_i.

    References:
        Ma et al., ICLR 2023, table 4; Sun et al., CVPR 2021 (arXiv:2012.06043).
    """
    rows = means.counts > 0
    weight = observation.gradient.weight.double()
    return {
        "soteria_embedding_mse": float(_square_errors(weight[rows], means.embeddings[rows]).mean()),
        "soteria_embedding_cossim": cosine_similarity(weight, means.embeddings, rows),
    }


def coverage(found: Restoration, true_counts: Int[Tensor, " classes"]) -> float | None:
    """How often an attack's 95 % interval contains the true count.

    Args:
        found: A restoration.
        true_counts: Number of instances of each class, int64, shape (classes,).

    Returns:
        Share of the classes; None if the attack gives no intervals of counts.
    """
    intervals = found.intervals
    if intervals is None or found.counts is None:
        return None
    true = true_counts.to(intervals)
    inside = (intervals[:, 0] <= true) & (true <= intervals[:, 1])
    return float(inside.double().mean())


def baseline(
    name: str, true_counts: Int[Tensor, " classes"], generator: torch.Generator
) -> Int[Tensor, " classes"]:
    """Counts without any attack, to compare attacks with.

    Args:
        name: ``uniform``: the same count for each class, up to rounding. ``absent``: all zero.
            ``shuffled``: the true counts, permuted over the classes at random.
        true_counts: Number of instances of each class, int64, shape (classes,).
        generator: Source of the permutation, on the CPU.

    Returns:
        int64, shape (classes,).

    Raises:
        ValueError: There is no baseline of that name.
    """
    classes, size = len(true_counts), int(true_counts.sum())
    if name == "uniform":
        return project_to_counts(torch.full((classes,), size / classes), size)
    if name == "absent":
        return torch.zeros_like(true_counts)
    if name == "shuffled":
        dealt: Tensor = true_counts[torch.randperm(classes, generator=generator)]
        return dealt
    raise ValueError(f"there is no baseline {name!r}")


def measure(
    names: Iterable[str], found: Restoration, observation: Observation, means: ClassMeans
) -> dict[str, float]:
    """The measures of the given names together.

    Args:
        names: Some of ``cossim``, ``approximations`` and ``soteria_embedding``.
        found: The restoration of iLRG.
        observation: What the server saw.
        means: The true means.

    Returns:
        The results of the functions of these names, in their order.

    Raises:
        KeyError: There is no measure of that name.
    """
    measures = {
        "cossim": lambda: cossim(found, means),
        "approximations": lambda: approximations(found, observation, means),
        "soteria_embedding": lambda: soteria_embedding(observation, means),
    }
    return {key: value for name in names for key, value in measures[name]().items()}


def _restored(
    found: Restoration,
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes classes"]]:
    if found.class_embeddings is None or found.class_probabilities is None:
        raise ValueError(
            f"attack {found.attack!r} restores no class embeddings and probabilities to compare"
        )
    return found.class_embeddings, found.class_probabilities


def _square_errors(
    a: Float[Tensor, "rows entries"], b: Float[Tensor, "rows entries"]
) -> Float[Tensor, " rows"]:
    return (a - b).square().mean(dim=1)


def _relative_errors(
    a: Float[Tensor, "rows entries"], b: Float[Tensor, "rows entries"]
) -> Float[Tensor, " rows"]:
    return torch.where(b != 0, (a - b).abs() / b.abs(), 0.0).mean(dim=1)
