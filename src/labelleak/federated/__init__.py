"""Federated learning: local training that makes updates, and the audit of what clients send."""

from labelleak.federated.allow import Allow
from labelleak.federated.auditor import Auditor, Decision, Occasion
from labelleak.federated.contents import Contents, look_at
from labelleak.federated.local_training import LocalUpdate, train_locally
from labelleak.federated.policy import Policy, read_policy
from labelleak.federated.rounds import RoundRecord, append_record, read_rounds

__all__ = [
    "Allow",
    "Auditor",
    "Contents",
    "Decision",
    "LocalUpdate",
    "Occasion",
    "Policy",
    "RoundRecord",
    "append_record",
    "look_at",
    "read_policy",
    "read_rounds",
    "train_locally",
]
