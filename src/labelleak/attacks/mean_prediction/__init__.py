"""Attacks that estimate the mean prediction over the batch: pooled and calibrated."""

from labelleak.attacks.mean_prediction import calibrated, pooled

__all__ = ["calibrated", "pooled"]
