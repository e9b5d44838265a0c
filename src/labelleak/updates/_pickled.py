"""Opening what ``torch.save`` wrote, by a stranger: looked through first, then loaded.

``torch.load(weights_only=True)`` runs no code, but a hostile pickle can still have it fill the
memory (a bytearray of any size) or overrun the stack (hashing deeply nested tuples).
"""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from labelleak.errors import UnreadableFile
from labelleak.updates.limits import Limits

_NESTED = ("state_dict", "model_state_dict", "model", "gradients", "weights", "net")
# All that the pickle of a state dict names; torch.load itself would allow more than tensors need.
_STORAGES = (
    *("Double", "Float", "Half", "BFloat16", "ComplexDouble", "ComplexFloat"),
    *("Long", "Int", "Short", "Char", "Byte", "Bool"),
)
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        *(f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "parameter", "sparse_tensor")),
        *("torch Size", "torch device", "torch.serialization _get_layout"),
        *(f"torch {name}Storage" for name in _STORAGES),
    }
)
_LARGEST_TUPLE = 1000


def load_pickled(path: Path, limits: Limits) -> tuple[dict[str, Tensor], str]:
    """The named tensors of a file that ``torch.save`` wrote, mapped into memory and not read.

    Args:
        path: File of a state dict, or of a dict with one in it, under ``"state_dict"`` say.
        limits: What it may claim at most.

    Returns:
        Its tensors by name, of several state dicts each behind its own name; and the prefix of
        those that a file with several usually means: ``"model."`` beside a ``"model_ema"``. The
        prefix is empty where none of them stands out.

    Raises:
        UnreadableFile: It holds something else, or is made to do harm. What the readers raise at
            a damaged file is passed on.
    """
    if not zipfile.is_zipfile(path):
        # Files from before PyTorch 1.6, too, which are plain pickles.
        raise UnreadableFile(
            f"{path}: no archive as torch.save writes it, and reading it as a pickle could run its "
            "code; save the state dict again, best as .safetensors"
        )
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        # What torch.save writes is stored as it is; compression is how a small file unpacks to
        # one that fills the memory.
        if any(item.compress_type != zipfile.ZIP_STORED for item in items):
            raise UnreadableFile(f"{path}: no file that torch.save wrote (it is compressed)")
        # Members of one name are read by one reader and not seen by the other, which ignores case.
        names = {item.filename.casefold(): item for item in items}
        pickles = [item for name, item in names.items() if name.endswith("/data.pkl")]
        size = path.stat().st_size
        wrong = len(names) < len(items) or any(item.file_size > size for item in items)
        if wrong or len(pickles) != 1:
            raise UnreadableFile(f"{path}: no file that torch.save wrote (its directory is wrong)")
        _look_through(path, archive.read(pickles[0]), limits)
    with warnings.catch_warnings():
        # Remarks on how the file was written are no concern of whoever reads it.
        warnings.simplefilter("ignore")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            # Its message advises to have the code run.
            raise _more_than_tensors(path) from None
    found = _named_tensors(content)
    if found is None:
        raise UnreadableFile(f"{path}: holds no state dict (a mapping of names to tensors)")
    return found


def _more_than_tensors(path: Path, what: str = "") -> UnreadableFile:
    return UnreadableFile(
        f"{path}: holds more than plain tensors{what}, and reading it could run its code; save the "
        "state dict alone, best as .safetensors"
    )


def _look_through(path: Path, pickled: bytes, limits: Limits) -> None:
    """Refuse a pickle that names more than tensors need, is too long, or nests without end."""
    # Of each object on the stack the number of objects in it if it is a tuple, which may be in it
    # many times over; otherwise 1. A mark is None.
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number >= limits.opcodes:
            raise UnreadableFile(
                f"{path}: holds too many tensors or other objects for a file of this kind: save "
                "the state dict as .safetensors"
            )
        name, taken = opcode.name, opcode.stack_before
        if name == "GLOBAL" and argument not in _GLOBALS:
            raise _more_than_tensors(path, f" ({argument!r:.80})")
        if name.endswith("PUT"):
            memo[int(str(argument))] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            stack.append(None)
        else:
            size = 1
            if pickletools.markobject in taken:
                while (item := stack.pop()) is not None:
                    size += item
                taken = taken[: taken.index(pickletools.markobject)]
            size += sum(stack.pop() or 0 for _ in taken)
            if "TUPLE" in name and size > _LARGEST_TUPLE:
                raise UnreadableFile(f"{path}: no file that torch.save wrote (nested too deeply)")
            stack.extend([size if "TUPLE" in name else 1] * len(opcode.stack_after))


def _named_tensors(content: object) -> tuple[dict[str, Tensor], str] | None:
    """The state dicts in what a file holds, and the prefix of the usual one, see `load_pickled`."""
    if not isinstance(content, Mapping):
        return None
    nested = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
    found = {key: _tensors_in(value) for key, value in {**nested, "": content}.items()}
    found = {key: tensors for key, tensors in found.items() if tensors}
    # Statistics that stand beside a state dict have no matrices.
    whole = {
        key: tensors
        for key, tensors in found.items()
        if any(value.ndim == 2 for value in tensors.values())
    }
    usual = [key for key in _NESTED if key in (whole or found)]
    if len(whole) < 2:
        keys = (key for key in [*usual, "", *found] if key in (whole or found))
        return next(((found[key], "") for key in keys), None)
    tensors = {
        f"{key}.{name}" if key else name: value
        for key, named in whole.items()
        for name, value in named.items()
    }
    return tensors, f"{usual[0]}." if len(usual) == 1 else ""


def _tensors_in(mapping: Mapping[object, object]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
