"""Parts of a definition that a plug-in may fill: the attacks, the defense, the network."""

import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from inspect import signature
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from labelleak.attacks import Attack, find_attack
from labelleak.attacks.registry import attack_at
from labelleak.lab.fields import Definition, Finite, Fraction, SeedNumber
from labelleak.lab.networks import build, is_own_network, network_plugin
from labelleak.plugins import Plugin, check_parameters, find_plugin, plugin_names

Activation = Literal["relu", "swish", "leaky_relu"]

_DEFENSES = (
    "none", "gaussian_noise", "clip_norm", "sparsify", "sign", "quantize", "soteria",
)  # fmt: skip
_DEFENSE_VALUES = {
    "gaussian_noise": ("the standard deviation of the noise, at least 0", 0.0, math.inf),
    "clip_norm": ("the largest Euclidean norm, above 0", math.nextafter(0.0, 1.0), math.inf),
    "sparsify": ("the percentage of entries that is set to zero, 0 to 100", 0.0, 100.0),
    "quantize": ("the number of bits, 2 to 16", 2.0, 16.0),
    "soteria": ("the percentage of features that is pruned, 0 to 100", 0.0, 100.0),
}


def labeled(name: str, parameters: Mapping[str, Any]) -> str:
    """A name for records and readers: with the parameters in brackets if there are any."""
    given = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}({given})" if given else name


class AttackSetting(Definition):
    """An attack with parameters: any further field is a keyword argument of its function.

    Attributes:
        name: Registered name, or ``module:name`` of a registered function.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Keyword arguments of the attack."""
        return self.__pydantic_extra__ or {}

    @property
    def label(self) -> str:
        """What records call it: the name, with the parameters in brackets if there are any."""
        return labeled(self.name, self.parameters)

    @property
    def entry(self) -> Attack | None:
        """Its entry in the table of attacks; None for ``auto``.

        Raises:
            ValueError: There is no such attack.
        """
        if self.name == "auto":
            return None
        return attack_at(self.name) if ":" in self.name else find_attack(self.name)

    @property
    def registered_name(self) -> str:
        """The name that `labelleak.restore` takes."""
        return "auto" if self.entry is None else self.entry.name

    @property
    def plugin(self) -> Plugin | None:
        """Where it comes from; None for an attack of labelleak."""
        return None if self.entry is None else self.entry.plugin


def setting_of(choice: str | AttackSetting) -> AttackSetting:
    """An attack of a definition, named or with parameters, as a setting."""
    return AttackSetting(name=choice) if isinstance(choice, str) else choice


def _attack(value: object) -> str | AttackSetting:
    """A name where there are no parameters, so that definitions stay as they were without them."""
    if isinstance(value, str):
        setting = AttackSetting(name=value)
    elif isinstance(value, AttackSetting):
        setting = value
    elif isinstance(value, dict) and isinstance(value.get("name"), str):
        setting = AttackSetting.model_validate(value)
    else:
        raise ValueError('a name is needed, or a table { name = "...", parameter = ... }')
    entry = setting.entry
    if setting.parameters:
        if entry is None:
            raise ValueError("the attack 'auto' has no parameters")
        first = next(iter(signature(entry.rule).parameters))
        check_parameters(
            f"the attack {setting.name!r}", entry.rule, setting.parameters, filled={first}
        )
    return setting if setting.parameters else setting.name


def _plain(choice: str | AttackSetting) -> str | dict[str, Any]:
    return choice if isinstance(choice, str) else choice.model_dump()


AttackChoice = Annotated[str | AttackSetting, PlainValidator(_attack), PlainSerializer(_plain)]
"""An attack in a definition: its name, or a table with the name and parameters."""


class Network(Definition):
    """A network of `labelleak.lab.networks.build`, or a plug-in.

    Attributes:
        name: ``fcn-N``, one of `labelleak.lab.networks.names`, a model of another library
            (``timm:NAME``, ``torchvision:NAME``, ``transformers:CLASS``), ``module:name`` of a
            function or class that makes a module, or an entry point of another package. Of the
            last four any further field is a keyword argument.
        activation: Of FCN and LeNet-5; the others have ``relu``.
        batchnorm: LeNet-5 only: whether BatchNorm follows each convolution. Here and below, None
            is the network's own default.
        dropout: VGG only: probability that training drops a feature, in [0, 1).
        stem: ResNet only: ``paper`` or ``imagenet``.
        seed: Seed of the initial weights, by default that of the published code; ``per-trial`` for
            other weights in each trial, of an untrained network.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    activation: Activation = "relu"
    batchnorm: bool | None = None
    dropout: Fraction | None = None
    stem: Literal["paper", "imagenet"] | None = None
    seed: SeedNumber | Literal["per-trial"] = 13

    @model_validator(mode="after")
    def _exists(self) -> "Network":
        if is_own_network(self.name):
            _check_network(self.name, self.activation, self.batchnorm, self.dropout, self.stem)
            refuse_further(self)
        else:
            network_plugin(self.name, self.further)
        return self

    @model_serializer(mode="wrap")
    def _plain(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Of a plug-in what was given alone: its function has none of the other fields."""
        whole = plain(self)
        given = {"name", "seed", *self.further}
        own = is_own_network(self.name)
        return whole if own else {name: whole[name] for name in whole if name in given}

    @property
    def label(self) -> str:
        """The name, with the keyword arguments of a plug-in in brackets."""
        return self.name if is_own_network(self.name) else labeled(self.name, self.further)

    @property
    def further(self) -> dict[str, Any]:
        """Keyword arguments of a plug-in; those of its own fields that are given are among them."""
        return given_fields(self, but=("name", "seed"))

    @property
    def plugin(self) -> Plugin | None:
        """Where it comes from; None for a network of labelleak."""
        return None if is_own_network(self.name) else network_plugin(self.name, self.further)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `labelleak.lab.networks.build` besides the name and the sizes."""
        if is_own_network(self.name):
            return self.model_dump(exclude={"name"})
        return {"seed": self.seed, **self.further}


@lru_cache(maxsize=256)
def _check_network(
    name: str, activation: str, batchnorm: bool | None, dropout: float | None, stem: str | None
) -> None:
    """Let `build` check the options, on the meta device, where no memory is allocated.

    Raises:
        ValueError: There is no such network, or it lacks these options.
    """
    with torch.device("meta"):
        build(
            name,
            classes=10,
            image_shape=(3, 64, 64),
            activation=activation,
            batchnorm=batchnorm,
            dropout=dropout,
            stem=stem,
        )


def given_fields(part: Definition, *, but: Collection[str]) -> dict[str, Any]:
    """What a definition was given, fields that only a plug-in has included, without some."""
    given = part.model_fields_set - set(but)
    return {name: value for name, value in part if name in given}


def refuse_further(part: Definition) -> None:
    """Refuse fields that only a plug-in may have.

    Raises:
        ValueError: There is one.
    """
    for name in part.__pydantic_extra__ or {}:
        known = ", ".join(type(part).model_fields)
        raise ValueError(f"no such field {name!r}, choose one of {known}")


class DefenseSetting(Definition):
    """A defense that the client applies to its update.

    Attributes:
        name: Name of a function of `labelleak.defenses`, ``none``, ``module:name`` of a function
            from gradients by name to such, or an entry point of another package. Of the last two
            any further field is a keyword argument; a ``generator`` is filled in.
        value: Strength: the standard deviation of ``gaussian_noise``, the norm of ``clip_norm``,
            the percentage of ``sparsify`` and ``soteria``, the bits of ``quantize``. None for
            ``none`` and ``sign``.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "none"
    value: Finite | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in _DEFENSES and ":" not in name and name not in plugin_names("defenses"):
            known = ", ".join((*_DEFENSES, *plugin_names("defenses")))
            raise ValueError(f"{name!r} is unknown, choose one of {known}, or module:name")
        return name

    @model_validator(mode="after")
    def _value_fits(self) -> "DefenseSetting":
        if self.name not in _DEFENSES:
            self._check_plugin()
            return self
        refuse_further(self)
        if self.name not in _DEFENSE_VALUES:
            if self.value is not None:
                raise ValueError(f"the defense {self.name!r} takes no value")
            return self
        meaning, low, high = _DEFENSE_VALUES[self.name]
        whole = self.name != "quantize" or self.value is None or self.value == int(self.value)
        if self.value is None or not low <= self.value <= high or not whole:
            raise ValueError(
                f"value {self.value} of the defense {self.name!r}: it is {meaning}"
                if self.value is not None
                else f"the defense {self.name!r} needs a value: {meaning}"
            )
        return self

    def _check_plugin(self) -> None:
        function = find_plugin("defenses", self.name).target
        if not callable(function):
            raise ValueError(f"the defense {self.name!r} is no function")
        first = next(iter(signature(function).parameters), "gradients")
        check_parameters(
            f"the defense {self.name!r}", function, self.parameters, filled={first, "generator"}
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of a plug-in."""
        value = {} if self.value is None else {"value": self.value}
        return value | (self.__pydantic_extra__ or {})

    @property
    def plugin(self) -> Plugin | None:
        """Where it comes from; None for a defense of labelleak."""
        return None if self.name in _DEFENSES else find_plugin("defenses", self.name)
