"""Counts of labels that every sample has a set of: one sigmoid for each, and no common sum."""
