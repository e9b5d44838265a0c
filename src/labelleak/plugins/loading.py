"""Import a module that a user names, and say clearly what was looked for and where."""

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from labelleak.errors import BrokenPlugin
from labelleak.plugins.source_code import source_hash

_folders: list[str] = []


def add_folder(folder: Path | str) -> None:
    """Let modules be imported from a folder, after all that Python finds by itself.

    Nothing that is installed can be replaced by a file in there.

    Args:
        folder: The folder; its modules run code where they are named.

    Raises:
        BrokenPlugin: There is no such folder.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise BrokenPlugin(f"the folder of modules {str(path)!r} is not there")
    if str(path) not in sys.path:
        sys.path.append(str(path))
        importlib.invalidate_caches()
    if str(path) not in _folders:
        _folders.append(str(path))


def added_folders() -> tuple[str, ...]:
    """The folders that `add_folder` has added, in that order."""
    return tuple(_folders)


def import_plugin(name: str, what: str) -> ModuleType:
    """Import a module.

    Args:
        name: Dotted name of the module.
        what: What it is wanted for, for the message.

    Returns:
        The module.

    Raises:
        BrokenPlugin: There is no such module, or it cannot be imported.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise BrokenPlugin(f"{what}: there is no module {error.name!r} {_where()}") from None
        raise BrokenPlugin(f"{what}: importing {name!r} failed: {what_went_wrong(error)}") from None
    except Exception as error:  # a module may raise anything while it is imported
        raise BrokenPlugin(f"{what}: importing {name!r} failed: {what_went_wrong(error)}") from None
    if name.partition(".")[0] != "labelleak" and getattr(module, "__spec__", None) is not None:
        source_hash(module)  # of the files as they are now
    return module


def _where() -> str:
    places = ["the installed packages", "PYTHONPATH", *map(repr, _folders)]
    return (
        f"in {', '.join(places[:-1])} and {places[-1]}; install it, or name its folder "
        "(--module-dir FOLDER, module_dir=... in Python)"
    )


def what_went_wrong(error: BaseException) -> str:
    """An error of other people's code in one line, with the place where it was raised.

    Args:
        error: The error.

    Returns:
        Its type and text, then the name of the file and the line.
    """
    own = str(Path(__file__).parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<frozen"))
    ]
    # A line of the user's own file tells more than the line of torch that it leads to.
    frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def load_object(reference: str, what: str) -> object:
    """The object that ``module:name`` names.

    Args:
        reference: Dotted name of a module, a colon, and a name in it, which may have dots.
        what: What it is, for the message, such as ``attack``.

    Returns:
        The object.

    Raises:
        BrokenPlugin: It is not of this form, there is no such module or name, or the module cannot
            be imported.

    Examples:
        >>> load_object("labelleak.defenses:sign", "defense").__name__
        'sign'
    """
    module_name, _, path = reference.partition(":")
    title = f"{what} {reference!r}"
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise BrokenPlugin(f"{title}: write module:name, as in my_module:{what.replace(' ', '_')}")
    found: object = import_plugin(module_name, title)
    place = getattr(found, "__file__", None) or "without a file"
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            hint = f"; it has {', '.join(near)}" if near else ""
            raise BrokenPlugin(f"{title}: {module_name!r} ({place}) has no {part!r}{hint}")
        found = getattr(found, part)
    return found
