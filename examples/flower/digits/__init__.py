"""Digits learnt by three sites, each of which audits what it sends."""
