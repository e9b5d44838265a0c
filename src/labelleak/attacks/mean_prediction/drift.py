"""How the mean prediction moves while the client trains for several steps."""

import torch

from labelleak.attacks.mean_prediction.mean_logits import MeanLogits
from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction
from labelleak.attacks.mean_prediction.regression import SMALL_HEAD, apply_weight
from labelleak.observation import Observation

# The layers below the head move the prediction about as much as the head does: how far is not seen.
_UNSEEN = 1.0


def on_the_way(
    observation: Observation, mean: MeanPrediction, pooled: MeanLogits
) -> MeanPrediction:
    """The mean prediction over all local steps, from that of the model before the first.

    The head moves by its gradient times how far the steps reach, which moves the logits of the mean
    embedding. The mean over the steps is where the head is on average. What the other layers move
    is not seen, and counts as an error of about the same size.

    Args:
        observation: Of several steps, or of one, which has no way.
        mean: Before the first step.
        pooled: Of the same observation.

    Returns:
        Without known errors (`has_errors`) where nobody told how far the steps reach.
    """
    if observation.local_steps == 1:
        return mean
    reach, place = observation.training.reach, observation.training.mean_place
    if reach is None or place is None:
        return mean._replace(has_errors=False)
    weight = observation.gradient.weight
    double = weight.numel() <= SMALL_HEAD
    along = apply_weight(weight, pooled.embedding[:, None], double=double)[:, 0]
    move = -reach * (along + pooled.bias_gradient)
    logits = mean.probabilities.clamp_min(1e-12).log()
    change = torch.softmax(logits + place * move, dim=0) - torch.softmax(logits, dim=0)
    generator = torch.Generator().manual_seed(8)
    errors = torch.randn(mean.replicates.shape, generator=generator, dtype=torch.float64)
    size = _UNSEEN * change.square().mean().sqrt()
    replicates = (mean.replicates + change[:, None]).add_(errors.to(change).mul_(size))
    return mean._replace(probabilities=mean.probabilities + change, replicates=replicates)
