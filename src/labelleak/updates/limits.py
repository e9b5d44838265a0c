"""What a file that a stranger sent may claim at most."""

import io
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
        header_bytes: Size of the table of tensors in a .safetensors file.
        members: Files in an archive (.npz, .pt): one for each array or storage.
        pickle_bytes: Size of the pickle in a .pt file, which is read opcode by opcode.
        opcodes: Steps of that pickle; a tensor takes about 35.
        unpacked_bytes: Size of one array of a compressed .npz.
    """

    tensors: int = 100_000
    name_length: int = 500
    shards: int = 1_000
    index_bytes: int = 2**25
    header_bytes: int = 2**24
    members: int = 20_000
    pickle_bytes: int = 2**24
    opcodes: int = 1_000_000
    unpacked_bytes: int = 2**31


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


def check_header(path: Path, limits: Limits) -> None:
    """Refuse a .safetensors file whose table of tensors is too large, before it is read.

    Raises:
        UnreadableFile: It is. What claims more than the file has is left to its reader.
    """
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if limits.header_bytes < claimed <= path.stat().st_size:
        raise UnreadableFile(
            f"{path}: a table of tensors of {claimed} bytes: at most {limits.header_bytes} are read"
        )


class _Directory(io.FileIO):
    """A file of which no read returns more than a directory of so many members may take."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path)
        self._path, self._limits = path, limits

    def read(self, size: int | None = -1, /) -> bytes:
        # A member has 46 bytes and its name there, and the end of the file is searched for it.
        most = 2**17 + self._limits.members * (46 + self._limits.name_length)
        if size is not None and size > most:
            raise UnreadableFile(
                f"{self._path}: an archive of too many files: at most {self._limits.members} are "
                "read"
            )
        return super().read(size) or b""


def check_archive(path: Path, limits: Limits) -> None:
    """Refuse an archive that claims too much; what is no archive is left to its reader.

    Raises:
        UnreadableFile: It has too many members, one of its members is too large, or two have one
            name.
    """
    if not zipfile.is_zipfile(path):
        return
    with _Directory(path, limits) as file, zipfile.ZipFile(file) as archive:
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
