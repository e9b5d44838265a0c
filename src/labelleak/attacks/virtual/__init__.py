"""Virtual clients: be the client on samples of one's own, and compare updates."""

from labelleak.attacks.virtual.attack import virtual_clients
from labelleak.attacks.virtual.simulation import Simulations

__all__ = ["Simulations", "virtual_clients"]
