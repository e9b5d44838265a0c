"""Samples from the fully connected layer before the head, where the whole update is there.

Between two ReLUs the gradient of a layer ``z = W h + b`` is

    G = [dW, db] = 1/D * sum_k d_k [h_k, 1]^T ,     d_k = (z_k > 0) * (W_head^T q_k) ,

of rank K for K far above the number of classes. Its inputs h_k are sparse directions of the row
space (SPEAR, Dimitrov et al., NeurIPS 2024). One that is found determines all that follows by a
forward pass: its embedding, its prediction and, for each label, d_k. The label is the one whose d_k
lies in the column space.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from labelleak.attacks.exact.atoms import off_label
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.factors import errors
from labelleak.attacks.exact.sparsity import sparse_directions
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation

# Rounds that find nothing; guesses of more zeros are right at once, or hardly ever.
_FRUITLESS, _FRUITLESS_LARGE, _LARGE = 12, 2, 24
# Above this number of entries, the few samples' space is found from random mixtures of columns.
_DENSE = 2_000_000
_OVERSAMPLED = 24
_CLEAR = 4.0
_NOISY = 1e-4
_LOOSENESS = 30.0
_CONSISTENT = 1e-3
_MOST_MISFIT = 0.1
_MOST_SLIP = 0.15
_COUPLING = 0.2
# As of the head's certificate: errors of a sample that is told from errors, and of its q.
_SEEN = 10.0
_DIFFERENT = 0.05
_STANDS_OFF = 5.0


@dataclass(frozen=True)
class Layer:
    """A fully connected layer between two ReLUs, next to the head; all float64.

    Attributes:
        weight: [W, b], shape (outputs, inputs + 1).
        gradient: G, of the same shape.
        rounding: Typical rounding error of one entry of G.
        head: [W, b] of the head, shape (classes, outputs + 1).
        class_weights: Of the loss, shape (classes,).
        epsilon: Machine epsilon of the client's arithmetic.
    """

    weight: Float[Tensor, "outputs columns"]
    gradient: Float[Tensor, "outputs columns"]
    rounding: float
    head: Float[Tensor, "classes width"]
    class_weights: Float[Tensor, " classes"]
    epsilon: float

    def embed(self, inputs: Float[Tensor, "samples columns"]) -> Float[Tensor, "samples width"]:
        """[e, 1] of [h, 1]."""
        return with_one((inputs @ self.weight.T).relu())


@dataclass(frozen=True)
class Samples:
    """Samples of the batch.

    Attributes:
        inputs: [h, 1] of the layer, shape (samples, columns).
        labels: int64, shape (samples,).
        inverse_weights: D over the number of times that each is there, shape (samples,).
    """

    inputs: Float[Tensor, "samples columns"]
    labels: Int[Tensor, " samples"]
    inverse_weights: Float[Tensor, " samples"]

    def __len__(self) -> int:
        return len(self.labels)


def layer_before(observation: Observation) -> Layer | None:
    """The layer, if the observation holds the model, its update, and such a layer.

    Modules are taken to follow each other in the order in which the model names them; that they do
    is shown by samples that fit.
    """
    model, gradients, name = observation.model, observation.gradients, observation.head.name
    if model is None or gradients is None or name is None or not observation.has_bias:
        return None
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    names = [n for n, _ in leaves]
    if name not in names:
        return None
    chain: list[tuple[str, nn.Linear]] = []
    width = observation.head.features
    for other, module in reversed(leaves[: names.index(name)]):
        if isinstance(module, (nn.ReLU, nn.Identity)):
            continue
        if isinstance(module, nn.Dropout) and not (module.training and module.p):
            continue
        if not isinstance(module, nn.Linear) or module.out_features != width:
            break
        chain.append((other, module))
        width = module.in_features
    # The first of them takes what no ReLU made; and one unit has room for no sample.
    if len(chain) < 2 or observation.head.features < 2:
        return None
    own, module = chain[0]
    found = [gradients.get(f"{own}.{kind}") for kind in ("weight", "bias")]
    if module.bias is None or found[0] is None or found[1] is None:
        return None
    place = observation.head.weight.device
    weight = torch.cat([module.weight, module.bias[:, None]], dim=1).detach()
    gradient = torch.cat([found[0], found[1][:, None]], dim=1).detach()
    head = observation.head
    assert head.bias is not None
    if gradient.shape != weight.shape or not bool(torch.isfinite(gradient).all()):
        return None
    return Layer(
        weight.to(place).double(),
        gradient.to(place).double(),
        implied_rounding(found[0]),
        torch.cat([head.weight, head.bias[:, None]], dim=1).double(),
        observation.loss.weights(observation.classes, head.bias.double()),
        float(torch.finfo(head.weight.dtype).eps),
    )


class LayerSearch:
    """Rounds of sparse directions of the layer's row space.

    Args:
        layer: The layer.
        batch_size: K, if it is known.
        divisor: D, if it is known.
        generator: Source of all guesses.

    Attributes:
        rank: Number of samples that the gradient shows; 0 if noise hides it.
        found: Those found.
    """

    def __init__(
        self,
        layer: Layer,
        batch_size: int | None,
        divisor: float | None,
        generator: torch.Generator,
    ) -> None:
        self.layer, self.divisor = layer, divisor
        self._generator = generator
        left, values, right, self._noise = _factorise(layer.gradient, batch_size, generator)
        if batch_size is None:
            # Nobody says where the samples end and rounding begins but the number format.
            self._noise = max(self._noise, layer.rounding / 4)
        loud = _CLEAR * self._noise * sum(side**0.5 for side in layer.gradient.shape)
        self.rank = int((values > loud).sum())
        # Where more samples may be there than were looked for, the rank says nothing of them.
        most = len(values)
        crowded = self.rank == most if batch_size is None else batch_size > most
        if crowded or self._noise * layer.gradient.numel() ** 0.5 > _NOISY * float(values.norm()):
            self.rank = 0
        self._left, self._values = left[:, : self.rank], values[: self.rank]
        self._right = right[:, : self.rank]
        self.found = Samples(
            layer.gradient.new_zeros(0, layer.gradient.shape[1]),
            torch.zeros(0, dtype=torch.int64, device=left.device),
            layer.gradient.new_zeros(0),
        )

    @property
    def is_complete(self) -> bool:
        """Whether as many samples are found as the rank shows."""
        return 0 < self.rank <= len(self.found)

    def run(self, clock: Clock) -> None:
        """Look until all are found, time is over or rounds stay fruitless."""
        fruitless = 0
        most = _FRUITLESS if self.rank <= _LARGE else _FRUITLESS_LARGE
        while self.rank and not self.is_complete and fruitless < most and not clock.is_over:
            before = len(self.found)
            directions = sparse_directions(
                self._right[:-1], self._noise / self._values, self._space(), self._generator
            )
            last = directions @ self._right[-1]
            points = directions[last.abs() > 1e-12] / last[last.abs() > 1e-12][:, None]
            for point in points:
                self._offer(point)
            if len(self.found) == self.rank - 1:
                self._offer_last()
            fruitless = 0 if len(self.found) > before else fruitless + 1

    def contributions(self) -> Float[Tensor, "samples outputs"]:
        """Each sample's d over its inverse weight."""
        d = _pulled(self.layer, self.found.inputs, self.found.labels)
        shares: Tensor = d / self.found.inverse_weights[:, None]
        return shares

    def errors(self) -> Float[Tensor, "samples classes"]:
        """Each sample's q over its inverse weight."""
        logits = self.layer.embed(self.found.inputs) @ self.layer.head.T
        q = errors(logits, self.found.labels, self.layer.class_weights)
        shares: Tensor = q / self.found.inverse_weights[:, None]
        return shares

    def _space(self) -> Float[Tensor, "rank unknown"]:
        """Where the other samples' coordinates lie: orthogonal to S^-1 U^T d of the found."""
        constraints = (self.contributions() @ self._left / self._values).T
        basis, _ = torch.linalg.qr(constraints, mode="complete")
        left: Tensor = basis[:, len(self.found) :]
        return left

    def _offer_last(self) -> None:
        """The one that is missing is all that the others leave of the gradient."""
        taken = (self.contributions() @ self._left).T @ (self.found.inputs @ self._right)
        _, _, right = torch.linalg.svd(torch.diag(self._values) - taken)
        last = float(right[0] @ self._right[-1])
        if abs(last) > 1e-12:
            self._offer(right[0] / last)

    def _goes_with_others(self, point: Tensor, pulled: Tensor) -> bool:
        """Samples of one batch are biorthogonal: a mixture with one that is found is not."""
        if not len(self.found):
            return True
        there = self.contributions() @ self._left / self._values @ point
        back = (self.found.inputs @ self._right) @ (pulled / self._values)
        return bool(torch.maximum(there.abs(), back.abs()).max() < _COUPLING)

    def _offer(self, point: Float[Tensor, " rank"]) -> None:
        """Take it if it is a sample of the batch, with the label that fits."""
        inputs = self._right @ point
        error = self._noise * float((point / self._values).norm())
        if len(self.found) >= self.rank or float(inputs[:-1].min()) < -_LOOSENESS * error:
            return
        # What is zero within its error is zero behind a ReLU.
        inputs = torch.where(inputs > 6.0 * error, inputs, 0.0)[None]
        inputs[:, -1] = 1.0
        classes = self.layer.head.shape[0]
        labels = torch.arange(classes, device=inputs.device)
        logits = (self.layer.embed(inputs) @ self.layer.head.T).expand(classes, -1)
        open_units = ((inputs @ self.layer.weight.T) > 0).double()
        directions = open_units * (off_label(logits, labels) @ self.layer.head[:, :-1])
        sizes = directions.norm(dim=1)
        inside = directions @ self._left
        misfits = (directions - inside @ self._left.T).norm(dim=1) / sizes.clamp_min(1e-300)
        # Of two classes both labels fit, with opposite signs: weights are positive.
        misfits = torch.where(inside @ (point / self._values) > 0, misfits, torch.inf)
        label = int(misfits.argmin())
        q = errors(logits[label : label + 1], labels[label : label + 1], self.layer.class_weights)
        size = float(q[0, label].abs())
        noise = self._noise * float((inside[label] / self._values).norm()) / float(sizes[label])
        allowed = _LOOSENESS * noise * len(self._left) ** 0.5 + _CONSISTENT
        allowed += _LOOSENESS * self.layer.epsilon / max(size, 1e-300)
        if not float(misfits[label]) < min(allowed, _MOST_MISFIT):
            return
        inverse = size * float((inside[label] * (point / self._values)).sum())
        if not inverse > 0.5:
            return
        if self.divisor is not None:
            times = max(1, round(self.divisor / inverse))
            if abs(inverse * times / self.divisor - 1.0) > _MOST_SLIP:
                return
        if not self._goes_with_others(point, inside[label] * (size / inverse)):
            return
        self._add(inputs, label, inverse)

    def _add(self, inputs: Tensor, label: int, inverse: float) -> None:
        found = self.found
        distances = (found.inputs - inputs).norm(dim=1)
        if bool(((distances < 1e-2 * inputs.norm()) & (found.labels == label)).any()):
            return
        self.found = Samples(
            torch.cat([found.inputs, inputs]),
            torch.cat([found.labels, found.labels.new_tensor([label])]),
            torch.cat([found.inverse_weights, found.inverse_weights.new_tensor([inverse])]),
        )

    def clear(self) -> Bool[Tensor, " samples"]:
        """Which samples found stand clear of the errors of the gradient and of the client's."""
        q = self.errors()
        embeddings = self.layer.embed(self.found.inputs)
        slips = self.layer.epsilon * q.norm(dim=1) * embeddings.norm(dim=1)
        slips = slips * float(self.layer.head.norm(dim=1).max())
        slips = slips + self.layer.epsilon / self.found.inverse_weights
        inside = self.contributions() @ self._left
        points = self.found.inputs @ self._right
        dual = (inside / self._values).norm(dim=1) * (points / self._values).norm(dim=1)
        noise = self._noise * len(self._left) ** 0.5 * dual
        sure: Tensor = (q.norm(dim=1) > _SEEN * slips) & (_SEEN * noise < 1.0)
        return sure

    def proves(self, head_gradient: Float[Tensor, "classes width"]) -> bool:
        """Whether the samples are all that both gradients are made of.

        Inputs and embeddings each determine every d and q by a linear system; they have to be those
        that the head predicts, with the label as the one negative entry, and leave nothing.
        """
        if not self.is_complete or not bool(self.clear().all()):
            return False
        return self._follows(
            self.layer.gradient, self.found.inputs, self.contributions(), self.layer.rounding
        ) and self._follows(
            head_gradient,
            self.layer.embed(self.found.inputs),
            self.errors(),
            implied_rounding(head_gradient.float()),
        )

    def _follows(self, matrix: Tensor, rows: Tensor, predicted: Tensor, rounding: float) -> bool:
        # Embeddings may depend on each other; solvers of a GPU do not take that.
        solved = torch.linalg.lstsq(rows.T.cpu(), matrix.T.cpu(), driver="gelsd").solution
        solved = solved.to(matrix)
        apart = (solved - predicted).norm(dim=1)
        if bool((apart > _DIFFERENT * predicted.norm(dim=1)).any()):
            return False
        left_over = (matrix - solved.T @ rows).norm()
        return bool(left_over <= _STANDS_OFF * rounding * matrix.numel() ** 0.5)


def with_one(rows: Float[Tensor, "samples features"]) -> Float[Tensor, "samples columns"]:
    """Rows with a 1 behind each, for the bias."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _pulled(
    layer: Layer, inputs: Float[Tensor, "samples columns"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "samples outputs"]:
    """D, the derivative of each sample's loss by the layer's outputs."""
    q = errors(layer.embed(inputs) @ layer.head.T, labels, layer.class_weights)
    pulled: Tensor = ((inputs @ layer.weight.T) > 0).double() * (q @ layer.head[:, :-1])
    return pulled


def _factorise(
    matrix: Tensor, batch_size: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """U, S, V with as many columns as there may be samples, and the error of one entry."""
    few = min(matrix.shape) // 2 if batch_size is None else min(batch_size, min(matrix.shape) // 2)
    if matrix.numel() > _DENSE:
        few = min(few, 512)
        width = few + _OVERSAMPLED
        mixed = matrix @ torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
        for _ in range(2):
            mixed = matrix @ (matrix.T @ torch.linalg.qr(mixed).Q)
        basis = torch.linalg.qr(mixed).Q
        small, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ small
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left, values, right = left[:, :few], values[:few], right[:few].T
    rest = matrix - (left * values) @ right.T
    noise = float(rest.norm()) / matrix.numel() ** 0.5
    return left, values, right.contiguous(), max(noise, 1e-13 * float(values[0]) / max(rest.shape))
