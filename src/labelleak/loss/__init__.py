"""The client's loss, in the terms that attacks read an update in: residual, targets, divisor."""

from labelleak.loss.client_loss import Loss
from labelleak.loss.options import MULTI_LABEL, Kind, Reduction

__all__ = ["MULTI_LABEL", "Kind", "Loss", "Reduction"]
