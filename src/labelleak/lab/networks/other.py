"""Networks that are not labelleak's: of timm, torchvision and transformers, or any module's."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from labelleak.errors import BrokenPlugin
from labelleak.lab.networks.registry import names, seeded
from labelleak.plugins import (
    Plugin,
    check_parameters,
    filled_in,
    find_plugin,
    import_plugin,
    plugin_names,
    what_went_wrong,
)


class LogitsOf(nn.Module):
    """A classifier of transformers as a function from one tensor to logits."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        """Wrap a model.

        Args:
            model: A model whose output has ``logits``.
            pad: Token that stands for nothing, and is masked.
        """
        super().__init__()
        self.model = model
        self._pad = pad

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits.

        Args:
            inputs: Pixel values, floating; or tokens, integers, shape (batch, length).

        Returns:
            Shape (batch, classes).
        """
        if inputs.is_floating_point():
            output = self.model(pixel_values=inputs)
        else:
            output = self.model(input_ids=inputs, attention_mask=(inputs != self._pad).long())
        logits: Tensor = output.logits
        return logits


def _of_timm(name: str, classes: int, input_shape: tuple[int, ...], **options: Any) -> nn.Module:
    timm: Any = importlib.import_module("timm")
    channels = {"in_chans": input_shape[0]} if len(input_shape) == 3 else {}
    model: nn.Module = timm.create_model(name, num_classes=classes, **(channels | options))
    return model


def _of_torchvision(
    name: str, classes: int, input_shape: tuple[int, ...], **options: Any
) -> nn.Module:
    models: Any = importlib.import_module("torchvision.models")
    model: nn.Module = models.get_model(name, num_classes=classes, **options)
    return model


def _of_transformers(
    name: str, classes: int, input_shape: tuple[int, ...], **options: Any
) -> nn.Module:
    kind: Any = getattr(importlib.import_module("transformers"), name)
    pretrained = options.pop("pretrained", None)
    if pretrained is not None:
        model = kind.from_pretrained(pretrained, num_labels=classes, **options)
    else:
        model = kind(kind.config_class(num_labels=classes, **options))
    pad = getattr(model.config, "pad_token_id", None)
    return LogitsOf(model, 0 if pad is None else pad)


def _knows_timm(name: str) -> bool:
    timm: Any = importlib.import_module("timm")
    return bool(timm.is_model(name.partition(".")[0]))


def _knows_torchvision(name: str) -> bool:
    models: Any = importlib.import_module("torchvision.models")
    return name in models.list_models()


def _knows_transformers(name: str) -> bool:
    return hasattr(importlib.import_module("transformers"), name)


_LIBRARIES: Mapping[str, tuple[Callable[[str], bool], Callable[..., nn.Module], str]] = (
    MappingProxyType(
        {
            "timm": (_knows_timm, _of_timm, "vit_tiny_patch16_224"),
            "torchvision": (_knows_torchvision, _of_torchvision, "resnet18"),
            "transformers": (
                _knows_transformers,
                _of_transformers,
                "BertForSequenceClassification",
            ),
        }
    )
)


def network_plugin(name: str, options: Mapping[str, Any]) -> Plugin:
    """A network that is not labelleak's own; whatever makes it is imported.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``transformers:CLASS``, ``module:name`` of a
            function or class that makes a module, or an entry point of another package.
        options: Keyword arguments for it. ``classes``, ``num_classes`` and ``image_shape`` are
            filled in where it has parameters of these names.

    Returns:
        The plug-in, whose target makes the network.

    Raises:
        BrokenPlugin: There is no such library, model, module or name.
        ValueError: An option is not one that it has.
    """
    library, _, model = name.partition(":")
    if library in _LIBRARIES:
        knows, make, example = _LIBRARIES[library]
        import_plugin(library, f"network {name!r}")
        package = f"{library} {version(library)}"
        try:
            known = knows(model)
        except Exception as error:  # of a library that is not as it should be installed
            raise BrokenPlugin(f"network {name!r}: {what_went_wrong(error)}") from None
        if not known:
            raise BrokenPlugin(
                f"network {name!r}: {package} has no model {model!r}, as in {library}:{example}"
            )
        return Plugin(name, package, library, partial(make, model), by_version=True)
    if ":" not in name and name not in plugin_names("networks"):
        own = [one for one in names() if not one.startswith("fcn-")]
        others = ", ".join((*own, *plugin_names("networks")))
        raise BrokenPlugin(
            f"unknown network {name!r}: choose one of fcn-N (N from 1 to 999), {others}, "
            "timm:NAME, torchvision:NAME, transformers:CLASS, or module:name"
        )
    plugin = find_plugin("networks", name)
    if isinstance(plugin.target, nn.Module) or not callable(plugin.target):
        raise BrokenPlugin(f"network {name!r}: name a function or a class that makes the module")
    filled = filled_in(plugin.target, {"classes": 0, "num_classes": 0, "image_shape": 0})
    check_parameters(f"the network {name!r}", plugin.target, options, filled)
    return plugin


def build_plugin(
    name: str, *, classes: int, example: Tensor, seed: int, **options: Any
) -> nn.Module:
    """Build a network that is not labelleak's own, and see that it takes the inputs.

    Args:
        name: As in `network_plugin`.
        classes: Number of classes; at least 2.
        example: A batch of inputs, shape (batch, ...).
        seed: Seed of the initial weights; see `build`.
        **options: Keyword arguments of whatever makes it.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        BrokenPlugin: It cannot be made, or does not give logits for these inputs.
    """
    plugin = network_plugin(name, options)
    make = cast("Callable[..., nn.Module]", plugin.target)
    shape = tuple(example.shape[1:])
    if plugin.by_version:
        options = {"classes": classes, "input_shape": shape, **options}
    else:
        sizes = {"classes": classes, "num_classes": classes, "image_shape": shape}
        options = filled_in(make, sizes) | options
    try:
        model = seeded(partial(make, **options), seed)
        with torch.no_grad():
            logits = model.eval()(example)
    except Exception as error:  # whatever other people's code raises
        raise BrokenPlugin(
            f"network {name!r} for {classes} classes and inputs of shape {shape} cannot be used: "
            f"{what_went_wrong(error)}"
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (len(example), classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BrokenPlugin(
            f"network {name!r} gives {found} for {len(example)} inputs, and logits of shape "
            f"{(len(example), classes)} are needed"
        )
    return model.train()
