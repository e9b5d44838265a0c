"""Finding the classification head among the parameters of a network, by names and shapes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from torch import nn

from labelleak.errors import AmbiguousHead
from labelleak.updates.ends import (
    LINEAR_ONLY,
    TIED,
    Accepted,
    OtherEnd,
    is_table,
    other_ends,
    tables_of_lone_biases,
)

Shapes = Mapping[str, Sequence[int]]
Value = TypeVar("Value")

# Matrices that are no candidates: look-up tables, projections fused from several ones, the low-rank
# factors of LoRA, and the auxiliary classifiers that some networks train with.
_NOT_A_HEAD = re.compile(
    r"embed|emb\.|wte|wpe|rel_pos|relative_attention_bias|qkv|query_key_value|(^|\.)(kv|to_kv|c_attn)\."
    r"|(^|\.)shared\.$|(^|\.)aux|(^|\.)lora_"
)
# A weight matrix as it is, or the tensor that weight_norm or spectral_norm makes it from.
_WEIGHT = re.compile(r"(^|\.)(weight|weight_v|weight_orig|parametrizations\.weight\.original1?)$")
# What torchvision, timm, transformers and the usual tutorials call the last layer, ...
_USUAL_NAMES = frozenset(
    {
        *("fc", "_fc", "fc_out", "last_linear", "linear", "linear_out", "final", "predict"),
        *("classif", "heads", "cls", "score", "output", "out", "out_proj"),
        *("prediction", "predictions", "decoder"),
    }
)
# ... or at least a part of its name: my_head, head_dist, cls_classifier, logits_proj.
_USUAL_PARTS = frozenset({"head", "classifier", "classification", "logits", "output", "final"})
_WRAPPERS = ("module.", "_orig_mod.", "_module.")
# PEFT moves a layer one level down, into the copy that is trained and into one that stays as it is.
_PEFT = re.compile(r"(^|\.)(modules_to_save\.[^.]+|original_module|base_layer)(?=\.|$)")
_CHOOSE = "choose the one that puts out the logits with head=NAME (on the command line --head NAME)"
_MOST_LISTED = 12
# So many layers that may be another kind of head are looked at; networks have a few.
_MOST_ENDS = 50


def strip_wrappers(names: Sequence[str]) -> dict[str, str]:
    """Names without the prefix that a wrapper (DataParallel, compile, Opacus) puts on all of them.

    Returns:
        The bare name for every given name.
    """
    bare = {name: name for name in names}
    changed = bool(bare)
    while changed:
        changed = False
        for wrapper in _WRAPPERS:
            if all(name.startswith(wrapper) for name in bare.values()):
                bare = {name: short.removeprefix(wrapper) for name, short in bare.items()}
                changed = True
    return bare


def by_bare_name(values: Mapping[Any, Value]) -> dict[str, Value]:
    """The values by their names as text, without the prefix that wrappers put on all of them."""
    bare = strip_wrappers([str(name) for name in values])
    return {bare[str(name)]: value for name, value in values.items()}


def without_wrappers(name: str) -> str:
    """One name without the prefixes that wrappers put before it."""
    while prefix := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(prefix)
    return name


def without_peft(name: str) -> str:
    """One name as the base model has it, without the level that PEFT adds.

    Examples:
        >>> without_peft("classifier.modules_to_save.default.weight")
        'classifier.weight'
    """
    return _PEFT.sub("", name).removeprefix(".")


def find_head(shapes: Shapes, *, accepted: Accepted = LINEAR_ONLY) -> str:
    """The name of the final linear layer, such as ``"fc"`` or ``"classifier.6"``.

    The head is the one weight matrix whose outputs no other layer takes in. Where several are
    left, layers that repeat from block to block are not it, and a usual name decides. Where the
    head is as wide as a hidden layer, its name has to tell it.

    Args:
        shapes: Shape of every parameter by its name in the state dict.
        accepted: Which last layers can be read beside a linear one, by the loss.

    Returns:
        The layer's name: its parameters are ``name + ".weight"`` and ``name + ".bias"``; the empty
        string for a network that is a single linear layer.

    Raises:
        AmbiguousHead: No candidate, or several with the same right; the message lists them. Or the
            last layer is one that cannot be read: one logit without a sigmoid, a 1x1 convolution,
            a table that the model looks tokens up in.

    Examples:
        >>> find_head({"fc1.weight": (64, 392), "fc2.weight": (10, 64)})
        'fc2'
    """
    found = head_candidates(shapes, accepted=accepted)
    if len(found) > 1:
        raise not_clear({name: shapes[parameter_name(name, "weight")] for name in found})
    return found[0]


def head_candidates(shapes: Shapes, *, accepted: Accepted = LINEAR_ONLY) -> list[str]:
    """The layers that may be the head: one where it is clear, more where names have to be told.

    Args:
        shapes: Shape of every parameter by its name in the state dict.
        accepted: Which last layers can be read beside a linear one, by the loss.

    Raises:
        AmbiguousHead: There is none, or the last layer is one that cannot be read.
    """
    layers = _layers(shapes)
    if not layers:
        lone = _lone_end(shapes)
        if lone is not None and accepted.takes(lone):
            return [lone.layer]
        raise AmbiguousHead(
            f"no final linear layer (a 2-D weight) was found among {len(shapes)} tensors: only a "
            f"fully connected head can be read{'' if lone is None else f', and {lone.text}'}"
        )
    found, listed = _found(layers)
    tied = tables_of_lone_biases(shapes)
    sizes = {shapes[table][0] for table in tied}
    if tied and not _usual([name for name, (outputs, _) in layers.items() if outputs in sizes]):
        raise AmbiguousHead(f"the head is tied to the table {layer_of(tied[0])!r}{TIED}")
    ends = _standing_out(shapes, layers)
    hidden = _hidden(found or listed, ends, layers)
    if not found:
        # Nothing but blocks, and so any end that looks like one is behind them.
        likely = [end for end in ends if _looks_like_a_head(end)]
        hidden |= {name: end for name in listed for end in likely}
    if hidden:
        end = next(iter(hidden.values()))
        if accepted.takes(end):
            return [end.layer]
        raise AmbiguousHead(
            f"the last layer cannot be read yet: {end.text}; where it is not the head, "
            f"candidates are: {_listed({name: layers[name] for name in found or listed})}; "
            f"{_CHOOSE}"
        )
    tables = [name for name, shape in shapes.items() if is_table(name) and len(shape) == 2]
    if tables and not found and set(listed).isdisjoint(_not_repeated(layers)):
        raise not_clear(
            {name: layers[name] for name in listed},
            f" (one that is tied to {layer_of(tables[0])!r}, as language models have, cannot be "
            "read)",
        )
    found = found or listed
    made = [name for name in found if parameter_name(name, "weight") not in shapes]
    if made:
        raise AmbiguousHead(
            f"the weight of the head {made[0]} is made from other tensors (weight_norm, "
            "spectral_norm): remove that parametrization on both sides of the update"
        )
    return found


def not_clear(layers: Shapes, reason: str = "") -> AmbiguousHead:
    """The error that lists layers by the shapes of their weights."""
    return AmbiguousHead(
        f"the classification head is not clear{reason}, candidates are: {_listed(layers)}; "
        f"{_CHOOSE}"
    )


def named_head(shapes: Shapes, head: str | None, *, accepted: Accepted = LINEAR_ONLY) -> str:
    """The head that the caller named, checked, or the one that `find_head` finds.

    A prefix, and the level that PEFT adds, may stand in the given name only, or among the tensors
    only. `accepted` is as of `head_candidates`.

    Raises:
        AmbiguousHead: The named layer does not exist or is no linear layer, or none was found.
    """
    if head is None:
        return find_head(shapes, accepted=accepted)
    name = layer_of(head) if head.rpartition(".")[2] in ("weight", "bias") else head
    if parameter_name(name, "weight") not in shapes:
        same = _same_layer(shapes, name)
        name = same[0] if len(same) == 1 else name
    shape = shapes.get(parameter_name(name, "weight"))
    ends = [end for end in other_ends(shapes) if end.layer == name]
    if ends and not accepted.takes(ends[0]):
        raise AmbiguousHead(f"head {head!r} cannot be read yet: {ends[0].text}")
    if shape is None or not (len(shape) == 2 or ends):
        matrices = [layer_of(n) for n, s in shapes.items() if len(s) == 2 and n.endswith("weight")]
        problem = "is not among the tensors" if shape is None else "has no weight matrix"
        raise AmbiguousHead(
            f"head {head!r} {problem}; layers with one: "
            f"{', '.join(matrices[-_MOST_LISTED:]) or 'none'}"
        )
    return name


def layer_of(parameter: str) -> str:
    """Name of the layer a parameter belongs to: ``"fc"`` for ``"fc.weight"``."""
    return parameter.rpartition(".")[0]


def parameter_name(layer: str, kind: str) -> str:
    """Name of a layer's parameter in the state dict: ``"fc.weight"``."""
    return f"{layer}.{kind}" if layer else kind


def module_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a model by its name; one that is shared has all its names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(value.shape) for name, value in named}


def _layers(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every linear layer that may be a head, by name."""
    matrices = {
        name[: match.start()]: (shape[0], shape[1])
        for name, shape in shapes.items()
        if (match := _WEIGHT.search(name)) and len(shape) == 2 and shape[0] >= 2
    }
    trained = {without_peft(layer_of(name)) for name in shapes if "modules_to_save." in name}
    return {
        name: sizes
        for name, sizes in matrices.items()
        if not _NOT_A_HEAD.search(name.lower() + ".")
        and not ("original_module" in name and without_peft(name) in trained)
    }


def _found(layers: Mapping[str, tuple[int, int]]) -> tuple[list[str], list[str]]:
    """The layers that may be the head, if any; and those to list where there are none."""
    ends = _ends(layers)
    unique = _not_repeated(ends)
    found = next((c for c in (ends, unique, _usual(unique or ends)) if len(c) == 1), [])
    if not _usual(found or unique):
        # A hidden layer as wide as the head's output hides the head from `_ends`, but not its
        # name; what lies deeper than the layers that were found is of their own making.
        found = found or unique
        depth = max((_depth(name) for name in found), default=None)
        named = _usual(_not_repeated(_without_chains(layers)))
        found = [*found, *(name for name in named if depth is None or _depth(name) <= depth)]
    listed = _usual(unique or ends) or sorted(layers, key=_repeats(layers).__getitem__)
    return found, listed


def _standing_out(shapes: Shapes, layers: Mapping[str, tuple[int, int]]) -> list[OtherEnd]:
    """Layers of other kinds that repeat in no blocks, and of which nothing takes in the outputs."""
    taken = {inputs for _, inputs in layers.values()} - {1}
    ends = [
        end
        for end in other_ends(shapes)
        if not (end.repeated or _NOT_A_HEAD.search(f"{end.layer.lower()}."))
        if end.outputs not in taken or _looks_like_a_head(end)
    ]
    return ends[-_MOST_ENDS:]


def _hidden(
    names: list[str], ends: list[OtherEnd], layers: Mapping[str, tuple[int, int]]
) -> dict[str, OtherEnd]:
    """The linear layers of those names that a layer of another kind comes after, and which.

    It takes in what the linear layer puts out, or looks like a head where the other does not. Two
    heads of one embedding stand beside each other.
    """
    own, usual = set(_usual(names)), set(_usual([end.layer for end in ends]))
    return {
        name: end
        for name in names
        for end in ends
        if _is_behind(end, name, layers[name], own=name in own, usual=end.layer in usual)
    }


def _is_behind(end: OtherEnd, name: str, sizes: tuple[int, int], *, own: bool, usual: bool) -> bool:
    """Whether it comes after a linear layer; `own` and `usual` say whose name is one of a head."""
    outputs, inputs = sizes
    if end.outputs == inputs:
        return False
    deeper = _depth(end.layer) - _depth(name)
    if end.inputs == outputs:
        # Not where the head has just as many classes as some block has channels.
        return end.outputs == 1 or usual or not own or deeper <= 0
    if end.inputs == inputs and (own or not usual):
        return False
    return (usual and (not own or deeper < 0)) or (end.is_last and (usual or not own))


def _looks_like_a_head(end: OtherEnd) -> bool:
    return end.is_last or bool(_usual([end.layer]))


def _lone_end(shapes: Shapes) -> OtherEnd | None:
    """What there is in place of a linear head."""
    ends = other_ends(shapes)
    likely = [end for end in ends if _looks_like_a_head(end)] or (ends if len(ends) == 1 else [])
    return likely[-1] if likely else None


def _listed(layers: Shapes) -> str:
    names = list(layers)[:_MOST_LISTED]
    more = " and more" if len(layers) > _MOST_LISTED else ""
    return (
        ", ".join(f"{name or '(top level)'} ({layers[name][0]} classes)" for name in names) + more
    )


def _same_layer(shapes: Shapes, name: str) -> list[str]:
    """Layers that bear the name but for wrappers and PEFT's level, or else for any prefix."""
    layers = [layer_of(other) for other in shapes if other.rpartition(".")[2] == "weight"]
    bare = without_wrappers(name)
    same = [other for other in layers if without_wrappers(other) == bare]
    if not same:
        plain = without_peft(bare)
        trained = [other for other in layers if "original_module" not in other]
        same = [other for other in trained if without_peft(without_wrappers(other)) == plain]
        same = same or [
            other
            for other in trained
            if f".{without_peft(other)}".endswith(f".{plain}")
            or (other and f".{plain}".endswith(f".{without_peft(other)}"))
        ]
    return same


def _ends(layers: Mapping[str, tuple[int, int]]) -> list[str]:
    """Layers whose number of outputs is the number of inputs of no other layer."""
    taken = Counter(inputs for _, inputs in layers.values())
    return [
        name
        for name, (outputs, inputs) in layers.items()
        if taken[outputs] - (inputs == outputs) == 0
    ]


def _depth(name: str) -> int:
    return without_peft(name).count(".")


def _repeats(names: Iterable[str]) -> dict[str, int]:
    """How many of the names are the same as each, digits aside: blocks repeat, heads do not."""
    patterns = {name: re.sub(r"\d+", "#", name) for name in names}
    counts = Counter(patterns.values())
    return {name: counts[pattern] for name, pattern in patterns.items()}


def _not_repeated(candidates: Iterable[str]) -> list[str]:
    return [name for name, number in _repeats(candidates).items() if number == 1]


def _usual(candidates: list[str]) -> list[str]:
    """Candidates of which the last word of the name, digits aside, is a usual one for a head."""
    return [name for name in candidates if _is_usual(without_peft(name).lower().split("."))]


def _is_usual(words: list[str]) -> bool:
    words = [word for word in words if not word.isdigit()]
    if not words or any("pre" in word.split("_") for word in words):
        return False
    last = words[-1].rstrip("0123456789")
    return last in _USUAL_NAMES or not _USUAL_PARTS.isdisjoint(last.split("_"))


def _without_chains(layers: Mapping[str, tuple[int, int]]) -> list[str]:
    """Of layers that follow each other (fc1, fc2; net.0, net.2) the last, and all others.

    They follow each other when their names differ in the last number only, and each takes in what
    the one before puts out. Not so net.0, net.1, which may be a list of several heads.
    """
    rows: dict[str, list[tuple[int, str]]] = {}
    for name in layers:
        found = re.search(r"\d+$", name)
        row = name[: found.start()] if found else name
        rows.setdefault(row, []).append((int(found[0]) if found else -1, name))
    kept: list[str] = []
    for row, members in rows.items():
        steps = list(pairwise(sorted(members)))
        chained = all(layers[one][0] == layers[two][1] for (_, one), (_, two) in steps)
        listed = row.endswith(".") and any(two - one == 1 for (one, _), (two, _) in steps)
        names = [name for _, name in sorted(members)]
        kept.extend(names[-1:] if chained and not listed else names)
    return kept
