"""Experiments: an audit that anyone can run at once, later the paper's tables and figures."""
