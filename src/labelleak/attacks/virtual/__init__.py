"""Virtual clients: be the client on samples of one's own, and compare updates."""

from labelleak.attacks.virtual.attack import virtual_clients
from labelleak.attacks.virtual.batches import virtual_batches
from labelleak.attacks.virtual.sharing import shared_by
from labelleak.attacks.virtual.simulation import Simulations
from labelleak.attacks.virtual.without_data import MadeUpClients, synthetic_clients

__all__ = [
    "MadeUpClients",
    "Simulations",
    "shared_by",
    "synthetic_clients",
    "virtual_batches",
    "virtual_clients",
]
