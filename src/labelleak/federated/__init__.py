"""Federated learning: local training that makes updates, and the audit of what clients send."""

from labelleak.federated.allow import Allow
from labelleak.federated.auditor import Auditor
from labelleak.federated.contents import Contents, look_at
from labelleak.federated.local_training import LocalUpdate, train_locally
from labelleak.federated.occasion import Decision, Occasion
from labelleak.federated.policy import Policy, read_policy
from labelleak.federated.rounds import RoundRecord, append_record, read_rounds
from labelleak.federated.running_answer import RunningAnswer

__all__ = [
    "Allow",
    "Auditor",
    "Contents",
    "Decision",
    "LocalUpdate",
    "Occasion",
    "Policy",
    "RoundRecord",
    "RunningAnswer",
    "append_record",
    "look_at",
    "read_policy",
    "read_rounds",
    "train_locally",
]
