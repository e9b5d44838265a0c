"""Published attacks, a file for each paper; importing one enters it in the table."""

from labelleak.attacks.published import (
    decaf,
    dimitrov,
    e2egi,
    ilrg,
    llbg,
    llg,
    rlg,
    rlu,
    signs,
    soft_label,
    zlg,
)

__all__ = [
    "decaf",
    "dimitrov",
    "e2egi",
    "ilrg",
    "llbg",
    "llg",
    "rlg",
    "rlu",
    "signs",
    "soft_label",
    "zlg",
]
