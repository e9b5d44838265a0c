"""Descents of single samples in the gradient of a layer behind which the activation is smooth.

The gradient of a sample with respect to the layer's outputs ``z = W h + b`` is

    d = act'(z) * (W_head^T q) .

It has to lie in the column space of the layer's gradient, as q does in that of the head's, and
[h, 1] in the row space. Those are far more equations than unknowns, also of two classes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.levenberg_marquardt import minimize
from labelleak.attacks.exact.logit_gradient import logit_directions
from labelleak.attacks.exact.low_rank import LowRank
from labelleak.attacks.exact.previous_layer import PreviousLayer

# Most entries of the derivatives in memory at once: 64 MB.
_ENTRIES = 2**23
# Standard deviation over the units of the difference between the outputs of a start and of what it
# starts beside: activations bend at about 1. Between these bounds, evenly by its logarithm.
_LEAST_SPREAD, _MOST_SPREAD = 0.1, 3.0


@dataclass(frozen=True)
class LayerSpace:
    """The row and column space of a layer's gradient, or of its rest, and the layer in them.

    Attributes:
        factors: Factors of the gradient.
        layer: The layer.
    """

    factors: LowRank
    layer: PreviousLayer

    @cached_property
    def weight(self) -> Float[Tensor, "outputs rank"]:
        """``[W, b] V``: the layer's outputs are ``weight @ a``."""
        return self.layer.outputs(self.factors.right.T).T

    @cached_property
    def origin(self) -> Float[Tensor, " rank"]:
        """The shortest a with last entry 1 in V a."""
        last = self.factors.right[-1]
        origin: Tensor = last / last.square().sum()
        return origin

    @cached_property
    def steps(self) -> Float[Tensor, "rank unknowns"]:
        """Orthonormal steps of a that keep the last entry of V a."""
        basis, _ = torch.linalg.qr(self.factors.right[-1][:, None], mode="complete")
        steps: Tensor = basis[:, 1:].contiguous()
        return steps


def draw_layer_starts(
    space: LayerSpace, number: int, generator: torch.Generator
) -> tuple[Float[Tensor, "starts rank"], Int[Tensor, " starts"]]:
    """Draw random points near the origin of the row space, and a random label for each.

    Args:
        space: Where the samples are.
        number: Number of starts.
        generator: Source of randomness.

    Returns:
        Coordinates, and labels.
    """
    classes = len(space.layer.head)
    labels = torch.randint(classes, (number,), generator=generator).to(space.origin.device)
    moves = torch.randn(number, space.steps.shape[1], generator=generator, dtype=torch.float64)
    share = torch.rand(number, 1, generator=generator, dtype=torch.float64).to(space.origin)
    moves = moves.to(space.origin) @ space.steps.T
    spread = (moves @ space.weight.T).std(dim=1, keepdim=True).clamp_min(1e-300)
    wanted = _LEAST_SPREAD * (_MOST_SPREAD / _LEAST_SPREAD) ** share
    return space.origin + moves * (wanted / spread), labels


def descend_in_layer(
    space: LayerSpace,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    *,
    steps: int,
    enough: float,
    clock: Clock,
) -> tuple[Float[Tensor, "points rank"], Float[Tensor, " points"]]:
    """Move every point to where the direction of d for its label lies in the column space.

    Args:
        space: Where the samples are.
        points: Coordinates of the starts.
        labels: Label of each start.
        steps: Largest number of steps.
        enough: Norm of the part outside at which a point has arrived.
        clock: Time limit.

    Returns:
        The points reached, and the norms of the part outside; infinite for points that there was
        no time for.
    """
    reached, misfits = points.clone(), points.new_full((len(points),), torch.inf)
    size = max(1, _ENTRIES // (space.weight.shape[0] * points.shape[1]))
    for start in range(0, len(points), size):
        if start and clock.is_over:
            break
        part = slice(start, start + size)
        problems = LayerFits(space, labels[part])
        reached[part], squares = minimize(
            problems, points[part], steps=steps, enough=enough**2, clock=clock
        )
        misfits[part] = squares.sqrt()
    return reached, misfits


@dataclass(frozen=True)
class LayerFits:
    """One problem for each point: the part of d's direction outside of the column space.

    Attributes:
        space: Where the samples are.
        labels: Label of each point.
    """

    space: LayerSpace
    labels: Int[Tensor, " points"]

    def evaluate(self, points: Float[Tensor, "points rank"]) -> tuple[Tensor, ...]:
        """Squared norms of the parts outside, the parts, the directions, their derivatives."""
        layer, outputs = self.space.layer, points @ self.space.weight.T
        head, slopes = layer.head[:, :-1], layer.activation.slopes(outputs)
        logits = layer.activation.values(outputs) @ head.T + layer.head[:, -1]
        by_logits = logit_directions(logits, self.labels)
        pulled = by_logits @ head
        vectors = slopes * pulled
        sizes = vectors.norm(dim=1, keepdim=True).clamp_min(1e-300)
        directions = vectors / sizes
        outside = self.space.factors.outside(directions)
        curved = layer.activation.curvatures(outputs) * pulled / sizes
        return outside.square().sum(dim=1), outside, directions, curved, slopes, by_logits, sizes

    def normal_equations(
        self, points: Float[Tensor, "points rank"], evaluated: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "points moves moves"], Float[Tensor, "points moves"]]:
        """J^T J and J^T r over the moves of every point."""
        _, outside, directions, curved, slopes, by_logits, sizes = evaluated
        space = self.space
        by_move = space.weight @ space.steps
        jacobian = curved[:, :, None] * by_move
        head = space.layer.head[:, :-1]
        if len(head) > 2:
            # Of two classes the direction of q depends on the label alone.
            shares = by_logits.scatter(1, self.labels[:, None], 0.0)
            by_logit = torch.einsum("co,po,om->pcm", head, slopes, by_move)
            turned = by_logit - torch.einsum("pc,pcm->pm", shares, by_logit)[:, None, :]
            turned = torch.einsum("co,pcm->pom", head, shares[:, :, None] * turned)
            jacobian = jacobian + (slopes / sizes)[:, :, None] * turned
        along = torch.einsum("po,pom->pm", directions, jacobian)
        jacobian = jacobian - directions[:, :, None] * along[:, None, :]
        inside = torch.einsum("or,pom->prm", space.factors.left, jacobian)
        gram = jacobian.transpose(1, 2) @ jacobian - inside.transpose(1, 2) @ inside
        return gram, torch.einsum("pom,po->pm", jacobian, outside)

    def move(
        self, points: Float[Tensor, "points rank"], steps: Float[Tensor, "points moves"]
    ) -> Float[Tensor, "points rank"]:
        """The points after their moves."""
        return points + steps @ self.space.steps.T

    def pick(self, chosen: Tensor) -> "LayerFits":
        """The problems of some points."""
        return LayerFits(self.space, self.labels[chosen])
