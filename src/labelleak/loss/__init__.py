"""The client's loss, in the terms that attacks read an update in: residual, targets, divisor."""

from labelleak.loss.client_loss import Loss
from labelleak.loss.options import CUSTOM, MULTI_LABEL, NAMED, Kind, Reduction
from labelleak.loss.pixels import by_pixel

__all__ = ["CUSTOM", "MULTI_LABEL", "NAMED", "Kind", "Loss", "Reduction", "by_pixel"]
