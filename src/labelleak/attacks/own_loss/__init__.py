"""Counts under a loss of the user's, from the residual of every class at the mean logits."""
