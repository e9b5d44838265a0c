"""Attacks that estimate the mean prediction over the batch: pooled, calibrated and damped."""

from labelleak.attacks.mean_prediction import calibrated, damped, pooled

__all__ = ["calibrated", "damped", "pooled"]
