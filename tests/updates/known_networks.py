"""Names and shapes of well-known classifiers, from `state_dicts.txt` beside this file."""

import re
from pathlib import Path

STATE_DICTS = Path(__file__).with_name("state_dicts.txt")


def expand(name):
    """Expand a range in a name: a.{0-1}.b stands for a.0.b and a.1.b."""
    found = re.search(r"\{(\d+)-(\d+)\}", name)
    if not found:
        return [name]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [f"{name[: found.start()]}{number}{name[found.end() :]}" for number in numbers]


def read_state_dicts():
    networks = {}
    for line in STATE_DICTS.read_text().splitlines():
        if line.startswith("["):
            title, _, heads = line.strip("[]").partition(": ")
            shapes = {}
            networks[title] = (heads.split(" or "), shapes)
        elif line and not line.startswith("#"):
            name, shape = line.split()
            shapes.update(dict.fromkeys(expand(name), shape.split("x")))
    return networks


NETWORKS = read_state_dicts()
CLEAR = {title: heads[0] for title, (heads, _) in NETWORKS.items() if len(heads) == 1}
NO_HEAD = [title for title, head in CLEAR.items() if head == "none"]
for title in NO_HEAD:
    del CLEAR[title]
SEVERAL = {title: heads for title, (heads, _) in NETWORKS.items() if len(heads) > 1}


def shapes_of(title, classes):
    return {
        name: tuple(classes if size == "C" else int(size) for size in shape)
        for name, shape in NETWORKS[title][1].items()
    }


def orders(shapes):
    """In the order of the model, and sorted by name as safetensors stores them."""
    return [shapes, dict(sorted(shapes.items()))]
