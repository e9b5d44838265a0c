"""Flower: audit what a client is about to send (a mod), or what a server receives (a strategy).

Needs the extra ``flower`` (flwr 1.22 or newer).
"""

from labelleak.federated.flower.client import (
    POLICY_KEY,
    LeakageAudit,
    provide_auxiliary,
    provide_labels,
)
from labelleak.federated.flower.messages import KEYS, REFUSED
from labelleak.federated.flower.server import AuditStrategy

__all__ = [
    "KEYS",
    "POLICY_KEY",
    "REFUSED",
    "AuditStrategy",
    "LeakageAudit",
    "provide_auxiliary",
    "provide_labels",
]
