"""Everything that leaves in the result of an NVIDIA FLARE task: objects, headers, meta, context."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.abstract.fl_model import FLModelConst, ParamsType
from torch import Tensor, nn

from labelleak.federated.contents import Unreadable, is_number

_OBJECT = "DXO"
_TABLES = (dict, OrderedDict)
_ARRAYS = (np.ndarray, Tensor, nn.Parameter)
_MODELS = (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF, DataKind.FL_MODEL)
_KINDS = {kind.value for kind in DataKind}
_CODES = {value for name, value in vars(ReturnCode).items() if name.isupper()}
# What FLARE itself tells the server of a client, with every message.
_OWN_PROPERTIES = (
    *(ReservedKey.RUN_NUM, ReservedKey.IDENTITY_NAME, ReservedKey.FQSN, ReservedKey.IS_LEAF),
    *(ReservedKey.CLIENT_NAME, ReservedKey.CURRENT_JOB_ID, ReservedKey.CLIENT_TYPE),
)
_DEEPEST = 8
_LONGEST_NAME = 40
_MOST_FILTERS = 8


@dataclass
class Result:
    """A result as plain data, and what was found in it.

    Attributes:
        message: The result made anew of plain data; arrays are those of the result.
        weights: The weights that can be audited, or their change, by name; None where there are
            none.
        is_change: Whether they are a change of the weights.
        steps: What the client says of its number of local steps.
        entries: All else that the result holds, by name, for `look_at`.
        problems: What is wrong with its form, in words.
    """

    message: Shareable
    weights: dict[str, Any] | None = None
    is_change: bool = False
    steps: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_result(result: Any, known: Mapping[str, Any]) -> Result:
    """Read the result of a task.

    The kind that an object declares proves nothing: only weights are audited, and whatever is in an
    object of another kind is an entry like any other. An audit covers one set of weights.

    Args:
        result: The result.
        known: What the server sent with the task, or knows, by name: it may be sent back.

    Returns:
        What is in it.

    Raises:
        TypeError: It is no ``Shareable``.
    """
    if type(result) is not Shareable:
        raise TypeError("a result that is no Shareable")
    content = dict(result)
    headers = plain(content.pop(ReservedHeaderKey.HEADERS, {}))
    body = {name: plain(value) for name, value in content.items()}
    message = Shareable(body)
    found = Result(message)
    if not isinstance(headers, dict):
        headers, found.entries["headers"] = {}, Unreadable("headers that are no table")
    # FLARE puts its own in this one's place before it sends.
    headers.pop(ReservedHeaderKey.PEER_CTX, None)
    message[ReservedHeaderKey.HEADERS] = headers
    _read_headers(found, headers, known)
    is_object = headers.get(ReservedHeaderKey.CONTENT_TYPE) == _OBJECT
    for name, value in body.items():
        if is_object and name == _OBJECT and isinstance(value, dict):
            entries = _read_object(found, value, known)
        else:
            entries = {name: _emptied(value)}
        found.entries.update(entries)
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """A value as plain data: tables, lists, objects of FLARE's own form, numbers, texts, arrays.

    Args:
        value: Anything.
        depth: How deep in others it is.

    Returns:
        The same in containers of its own; `Unreadable` in place of what is anything else. A
        subclass may carry more than it shows, and is read as something else.
    """
    if depth > _DEEPEST:
        return Unreadable("nested too deep")
    if type(value) in _TABLES:
        return {name: plain(entry, depth + 1) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return [plain(entry, depth + 1) for entry in value]
    if type(value) is DXO:
        parts = {"kind": value.data_kind, "data": value.data, "meta": value.meta}
        return _object_of(plain(parts, depth + 1))
    if type(value) in (DataKind, ParamsType):
        return value.value
    if value is None or type(value) in (str, bytes, *_ARRAYS) or is_number(value):
        return value
    return Unreadable(f"a value of type {type(value).__name__}")


def foreign_properties(fl_ctx: FLContext) -> dict[str, Any]:
    """Public properties of a context that are not FLARE's own: it sends them with every message.

    Args:
        fl_ctx: The context.
    """
    properties = fl_ctx.get_all_public_props()
    return {
        name: _emptied(plain(value))
        for name, value in properties.items()
        if name not in _OWN_PROPERTIES and value is not None
    }


def remove_properties(fl_ctx: FLContext, names: Mapping[str, Any]) -> None:
    """Empty public properties of a context, here and where it keeps those that stay."""
    for name in names:
        sticky = bool((fl_ctx.get_prop_detail(name) or {}).get("sticky"))
        fl_ctx.set_prop(name, None, private=False, sticky=sticky)


def tensor_of(value: Any) -> Any:
    """An array as a tensor that shares its memory; anything else as it is."""
    if type(value) is not np.ndarray:
        return value
    try:
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except (TypeError, ValueError):
        return value


def _object_of(parts: dict[str, Any]) -> Any:
    try:
        return DXO(parts["kind"], parts["data"], parts["meta"])
    except ValueError:
        return Unreadable("an object that is broken")


def _read_headers(found: Result, headers: dict[Any, Any], known: Mapping[str, Any]) -> None:
    others = {
        name: value
        for name, value in headers.items()
        if not (name in known and _is_same(value, known[name]))
    }
    if others.pop(ReservedHeaderKey.CONTENT_TYPE, _OBJECT) != _OBJECT:
        found.problems.append("a content type that is not FLARE's")
    if others.pop(ReservedHeaderKey.RC, ReturnCode.OK) not in _CODES:
        found.problems.append("a return code that is not FLARE's")
    if others:
        found.entries["headers"] = others


def _read_object(
    found: Result, encoded: dict[Any, Any], known: Mapping[str, Any]
) -> dict[Any, Any]:
    """Find the weights in an object; all else in it, by name."""
    rest = dict(encoded)
    kind, content, meta = (rest.pop(key, None) for key in ("kind", "data", "meta"))
    if type(kind) is not str or kind not in _KINDS:
        found.problems.append("an object of an unknown kind")
    rest |= _read_meta(found, meta, known)
    if kind == DataKind.COLLECTION and isinstance(content, dict):
        for name, member in content.items():
            if type(member) is DXO:
                parts = {"kind": member.data_kind, "data": member.data, "meta": member.meta}
                rest[name] = _read_object(found, parts, known)
            else:
                rest[name] = _emptied(member)
    elif kind in _MODELS:
        rest |= _read_model(found, str(kind), content)
    elif content:
        rest["data"] = _emptied(content)
    return rest


def _read_model(found: Result, kind: str, content: Any) -> dict[Any, Any]:
    rest: dict[Any, Any] = {}
    if kind == DataKind.FL_MODEL and isinstance(content, dict):
        rest = dict(content)
        content = rest.pop(FLModelConst.PARAMS, None)
        form = rest.pop(FLModelConst.PARAMS_TYPE, None)
        if form not in (None, ParamsType.FULL.value, ParamsType.DIFF.value):
            found.problems.append("parameters of an unknown type")
        kind = DataKind.WEIGHT_DIFF if form == ParamsType.DIFF.value else DataKind.WEIGHTS
        rest = {name: _emptied(value) for name, value in rest.items() if value is not None}
        if content is None:
            return rest
    if found.weights is not None:
        rest["data"] = Unreadable("a second object of weights")
    elif not isinstance(content, dict) or any(type(name) is not str for name in content):
        rest["data"] = Unreadable("weights that are no table of names")
    else:
        found.weights = {name: tensor_of(value) for name, value in content.items()}
        found.is_change = kind == DataKind.WEIGHT_DIFF
    return rest


def _read_meta(found: Result, meta: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(meta, dict):
        return {} if meta is None else {"meta": Unreadable("meta that is no table")}
    if found.steps is None:
        found.steps = meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND)
    others = {
        name: _emptied(value)
        for name, value in meta.items()
        if not (name in known and _is_same(value, known[name]))
        and not (name == MetaKey.FILTER_HISTORY and _is_history(value))
    }
    return {"meta": others} if others else {}


def _is_history(value: Any) -> bool:
    """Whether it is a list of filters, as FLARE's filters leave it."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST_FILTERS
        and all(
            type(name) is str
            and name.isascii()
            and name.isidentifier()
            and len(name) <= _LONGEST_NAME
            for name in value
        )
    )


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same plain data."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    plain_data = one is None or type(one) is str or is_number(one)
    return plain_data and type(one) is type(other) and bool(one == other)


def _emptied(value: Any) -> Any:
    """Plain data in which no array and no object is left: what it is, in its place."""
    if isinstance(value, dict):
        return {name: _emptied(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_emptied(entry) for entry in value]
    if type(value) is DXO:
        return Unreadable("an object where none belongs")
    if isinstance(value, np.ndarray | Tensor):
        return Unreadable(f"an array of {_shape(value)}")
    return value


def _shape(array: Any) -> str:
    return " x ".join(map(str, array.shape)) or "one number"
