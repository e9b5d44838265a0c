"""The loss."""

from typing import Literal

Reduction = Literal["mean", "sum"]
