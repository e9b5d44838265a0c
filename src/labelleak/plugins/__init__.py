"""Attacks, defenses, networks, data sets and losses of other packages: found, loaded, told apart.

Other packages name theirs in entry points, and a user's own grid may name any object of a Python
module. Both run code of the package or module. So an entry point is loaded only by who asks for its
name or for the whole list, and a module only by who names it: nothing that is read of an update
can do either.
"""

from labelleak.plugins.finding import (
    KINDS,
    EntryPoint,
    Plugin,
    entry_points,
    find_plugin,
    package_of,
    plugin_names,
)
from labelleak.plugins.loading import (
    add_folder,
    added_folders,
    import_plugin,
    load_object,
    what_went_wrong,
)
from labelleak.plugins.parameters import check_parameters, filled_in
from labelleak.plugins.source_code import essence_of, source_hash

__all__ = [
    "KINDS",
    "EntryPoint",
    "Plugin",
    "add_folder",
    "added_folders",
    "check_parameters",
    "entry_points",
    "essence_of",
    "filled_in",
    "find_plugin",
    "import_plugin",
    "load_object",
    "package_of",
    "plugin_names",
    "source_hash",
    "what_went_wrong",
]
