"""Federated learning: local training that makes updates."""

from labelleak.federated.local_training import LocalUpdate, train_locally

__all__ = ["LocalUpdate", "train_locally"]
