"""What definitions of experiments are made of: their base, and the kinds of numbers in them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
SeedNumber = Annotated[int, Field(ge=0, lt=2**63)]


class Definition(BaseModel):
    """Base of all parts of a definition: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
