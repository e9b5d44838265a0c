"""What a site could change: the same update audited again after each change, with its price."""

from labelleak.advice.advising import Advice, advise
from labelleak.advice.client import LocalClient, ceiling_of
from labelleak.advice.trials import Change, Untried

__all__ = ["Advice", "Change", "LocalClient", "Untried", "advise", "ceiling_of"]
