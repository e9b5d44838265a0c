"""Seeds derived from a purpose: independent of each other, the same on every machine."""

import hashlib


def derive_seed(*purpose: int | str) -> int:
    """A seed for one purpose, independent of the seeds of all others.

    Args:
        *purpose: What the seed is for: seeds, numbers and words.

    Returns:
        An integer from 0 to 2**63 - 1: the first 63 bits of a SHA-256 hash.
    """
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
