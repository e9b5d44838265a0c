"""What a file that a stranger sent may claim at most."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from labelleak.errors import UnreadableFile


@dataclass(frozen=True)
class Limits:
    """Bounds above which a file is refused, before what it claims takes time or memory.

    Attributes:
        tensors: Number of tensors.
        name_length: Characters of a tensor's name.
        shards: Files that an index may name.
        index_bytes: Size of an index of shards.
        members: Files in an archive (.npz, .pt).
        pickle_bytes: Size of the pickle in a .pt file, which is read opcode by opcode.
        unpacked_bytes: Size of one array of a compressed .npz.
    """

    tensors: int = 100_000
    name_length: int = 500
    shards: int = 1_000
    index_bytes: int = 2**25
    members: int = 200_000
    pickle_bytes: int = 2**25
    unpacked_bytes: int = 2**33


LIMITS = Limits()


def check_names(path: Path, names: list[str], limits: Limits) -> None:
    """Refuse too many tensors, and names that would spoil a message.

    Raises:
        UnreadableFile: There are too many, or none; or a name is too long or not printable.
    """
    if not names:
        raise UnreadableFile(f"{path}: holds no named tensors")
    if len(names) > limits.tensors:
        raise UnreadableFile(
            f"{path}: holds {len(names)} tensors: at most {limits.tensors} are read"
        )
    if not all(name.isprintable() and len(name) <= limits.name_length for name in names):
        raise UnreadableFile(f"{path}: a tensor's name is too long or not printable")


def check_archive(path: Path, limits: Limits) -> None:
    """Refuse an archive that claims too much; what is no archive is left to its reader.

    Raises:
        UnreadableFile: It has too many members, one of its members is too large, or two have one
            name.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
    if len(items) > limits.members:
        raise UnreadableFile(
            f"{path}: an archive of {len(items)} files: at most {limits.members} are read"
        )
    size = path.stat().st_size
    for item in items:
        is_pickle = item.filename.casefold().endswith(".pkl")
        # What is stored as it is and claims more than its file has is no archive of torch.
        is_packed = item.compress_type != zipfile.ZIP_STORED
        most = limits.pickle_bytes if is_pickle else limits.unpacked_bytes
        if item.file_size > most and (is_packed or (is_pickle and item.file_size <= size)):
            raise UnreadableFile(
                f"{path}: {item.filename[:60]!a} in it claims {item.file_size} bytes: at most "
                f"{most} are read"
            )
