"""Every figure in README and docs, against its record.

    python benchmarks/claims.py            # check: names every figure that is not its record's
    python benchmarks/claims.py --write    # make tables and marked figures again from the records

Tables between ``<!-- table: NAME -->`` and ``<!-- end -->`` are made from records, see
`claimed_tables.TABLES`. A figure in a sentence is followed by a comment that says where it is from:

- ``0.984<!-- claim: results/FILE.json PATH FORMAT -->``: from a record. PATH leads through JSON,
  with ``/`` between its parts: a key, a number in a list, or ``KEY=VALUE`` for the first item with
  that value. FORMAT is Python's, after an optional factor: ``.3f``, ``1e-6*.0f``, ``100*.0f``.
- ``0.93<!-- published: RUN FIGURE FORMAT -->``: from `labelleak.lab.published_figures`.
- ``0.15<!-- set -->``: chosen, not measured: a bound in the code, or a setting of an experiment.

A decimal number without such a comment is an error, but for versions of software, licenses, code,
formulas, addresses, and numbers in tables that are made.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from claimed_tables import TABLES
from labelleak.lab.code_version import code_hash
from labelleak.lab.published_figures import published_runs

ROOT = Path(__file__).parent.parent

_TABLE = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
_MARK = re.compile(
    r"(?P<shown>[+-]?[\d,]*\.?\d+)<!-- (?P<kind>claim|published): (?P<source>.+?) -->"
)
_SET = "<!-- set -->"
_FORMAT = re.compile(r"(?:(?P<factor>[\d.e+-]+)\*)?(?P<spec>,?\.\df)")
_DECIMAL = re.compile(r"(?<![\w.,-])\d[\d,]*\.\d+(?![\d.]*\.\d)")
_SOFTWARE = (
    "Python", "PyTorch", "torch", "torchvision", "timm", "transformers", "peft", "Flower", "FLARE",
    "Opacus", "opacus", "SA",
)  # fmt: skip
# What stands before or after a version.
_BEFORE_A_VERSION = re.compile(rf"(?:\b(?:{'|'.join(_SOFTWARE)})|tested with|nvflare`,|opacus`,) $")
_AFTER_A_VERSION = re.compile(r" or (?:later|newer)| and newer")
# Where a decimal number is no claim: code, formulas, links, comments, tables that are made.
_MASKED = re.compile(
    r"<!-- table: .*?<!-- end -->|```.*?```|~~~.*?~~~|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$"
    r"|\]\([^)\s]+\)|\[arXiv:[\d.]+\]|\{[^}\n]*\}|https?://\S+",
    re.DOTALL,
)


def pages() -> list[Path]:
    """The pages with figures that have to hold."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def record(path: str) -> Any:
    """The content of a record."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def value_at(content: Any, path: str) -> Any:
    """Follow a path through JSON.

    Raises:
        KeyError: There is no such place.
    """
    for part in path.split("/"):
        key, _, wanted = part.partition("=")
        if isinstance(content, list) and wanted:
            matching = [item for item in content if str(item.get(key)) == wanted]
            if not matching:
                raise KeyError(part)
            content = matching[0]
        elif isinstance(content, list):
            content = content[int(part)]
        else:
            content = content[part]
    return content


def written(value: float, form: str) -> str:
    """A value as a page shows it.

    Raises:
        ValueError: There is no such format.
    """
    found = _FORMAT.fullmatch(form)
    if found is None:
        raise ValueError(f"the format {form!r} is none of a claim: write .3f or 100*.0f")
    return format(float(found["factor"] or 1) * value, found["spec"])


def _from_record(source: str) -> str:
    file, _, rest = source.partition(" ")
    path, _, form = rest.rpartition(" ")
    return written(value_at(record(file), path), form)


def _from_publication(source: str) -> str:
    run, figure, form = source.split(" ")
    return written(published_runs()[run].figures[figure], form)


_SOURCES: dict[str, Callable[[str], str]] = {"claim": _from_record, "published": _from_publication}


def renewed(text: str) -> tuple[str, list[str]]:
    """A page with its tables and marked figures made again.

    Args:
        text: The page.

    Returns:
        The page, and what was wrong with it, one line each.
    """
    problems: list[str] = []

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            problems.append(f"there is no table {name!r}")
            return match[0]
        try:
            lines = "".join(f"{line}\n" for line in TABLES[name](record))
        except (KeyError, ValueError, OSError) as error:
            problems.append(f"table {name!r}: {error}")
            return match[0]
        if lines != match[2]:
            problems.append(f"table {name!r} is not that of its record")
        return f"<!-- table: {name} -->\n{lines}<!-- end -->"

    def figure(match: re.Match[str]) -> str:
        try:
            expected = _SOURCES[match["kind"]](match["source"])
        except (KeyError, IndexError, ValueError, OSError, TypeError) as error:
            problems.append(f"{match['source']}: {error!r}")
            return match[0]
        if match["shown"] != expected:
            problems.append(f"{match['shown']} is {expected} in {match['source']}")
        return match[0].replace(match["shown"], expected, 1)

    return _MARK.sub(figure, _TABLE.sub(table, text)), problems


def unmarked(text: str) -> Iterator[str]:
    """Decimal numbers of a page that say nothing about where they are from."""
    plain = _MASKED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    bare = re.sub(r"<!--.*?-->", lambda match: " " * len(match[0]), plain, flags=re.DOTALL)
    for found in _DECIMAL.finditer(bare):
        rest = text[found.end() :]
        if rest.startswith(("<!-- claim: ", "<!-- published: ", _SET)):
            continue
        before = bare[: found.start()].replace("\n", " ")
        if _BEFORE_A_VERSION.search(before) or _AFTER_A_VERSION.match(rest.replace("\n", " ")):
            continue
        number = text.count("\n", 0, found.start()) + 1
        yield f"line {number}: {found[0]} says nothing about where it is from"


def main() -> None:
    """Check all pages, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="make tables and figures again")
    given = parser.parse_args()
    wrong = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new, problems = renewed(text)
        if given.write:
            page.write_text(new, encoding="utf-8")
            problems = renewed(new)[1]
        for problem in (*problems, *unmarked(new if given.write else text)):
            wrong += 1
            print(f"{page.relative_to(ROOT)}: {problem}", file=sys.stderr)
    if wrong:
        sys.exit(f"{wrong} figures do not hold: correct them, or run this with --write")
    rows = record("results/leaderboard/summary.json")["studies"][0]["rows"]
    if {code for row in rows for code in row["code"]} != {code_hash()}:
        print("Note: other code than this has made the leaderboard; its page says so.")
    print("All figures are those of their records.")


if __name__ == "__main__":
    main()
