"""The identity of a trial: hashes under which its record is kept and found again."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

TRIAL_SCHEMA = "labelleak/trial/1"
"""Name and version of a trial's record; part of every key."""

# Fields that were added later, by the value without which there was no such field: a definition
# with that value has the key that it had before.
_ADDED: dict[str, Any] = {
    "inversion": None,
    "time_limit": None,
    "baselines": [],
    "local": None,
    "auxiliary_per_class": None,
    "range": "all",
}


def hash_of_definition(definition: dict[str, Any], index: int) -> str:
    """A hash of a definition and the number of a trial.

    Args:
        definition: The fields of an experiment that a trial depends on, as JSON has them.
        index: Number of the trial, from 0.

    Returns:
        SHA-256 of the definition in canonical JSON, the index and the version of the record's
        schema, 64 hexadecimal digits.
    """
    content = {
        name: value
        for name, value in definition.items()
        if name not in _ADDED or value != _ADDED[name]
    }
    text = json.dumps([TRIAL_SCHEMA, content, index], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_with_code(definition: str, code: str) -> str:
    """The key of a record.

    Args:
        definition: Key of the definition.
        code: Hash of the code that ran it, see `labelleak.lab.code_version`.

    Returns:
        SHA-256 of both, 64 hexadecimal digits.
    """
    return hashlib.sha256(f"{definition}/{code}".encode()).hexdigest()


def hash_with_plugins(own: str, plugins: Sequence[str]) -> str:
    """The hash of all code that a trial runs.

    Args:
        own: Hash of labelleak's own code.
        plugins: Hashes of the plug-ins, in any order.

    Returns:
        16 hexadecimal digits; labelleak's own hash where there is no plug-in.
    """
    if not plugins:
        return own
    return hashlib.sha256("/".join([own, *sorted(plugins)]).encode()).hexdigest()[:16]


def definition_of(record: dict[str, Any]) -> str:
    """The key of the definition that a record was made for.

    Args:
        record: The record of a trial. Those made before the code had a part in the key have no
            other key than that of the definition.

    Returns:
        The key.
    """
    return str(record.get("definition", record["key"]))
