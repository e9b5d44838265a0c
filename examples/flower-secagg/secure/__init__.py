"""Digits learnt under secure aggregation by three sites that audit what they send."""
