import importlib.metadata

import pytest

from labelleak.errors import BrokenPlugin
from labelleak.plugins import entry_points, find_plugin, finding, package_of, plugin_names


class Dist:
    name, version = "some-package", "2.5"


@pytest.fixture
def declared(monkeypatch):
    """Declare entry points by group, as installed packages do."""

    def declare(**groups):
        def found(*, group):
            made = []
            for name, value in groups.get(group.removeprefix("labelleak."), {}).items():
                made.append(importlib.metadata.EntryPoint(name, value, group)._for(Dist()))
            return made

        monkeypatch.setattr(importlib.metadata, "entry_points", found)
        finding.entry_points.cache_clear()

    yield declare
    monkeypatch.undo()
    finding.entry_points.cache_clear()


def test_entry_points_are_listed_without_being_loaded(declared):
    declared(defenses={"turn": "no_such_module:turn"})
    assert plugin_names("defenses") == ("turn",)
    assert entry_points("defenses")["turn"].package == "some-package 2.5"
    assert plugin_names("networks") == ()
    with pytest.raises(BrokenPlugin, match=r"defense 'turn' of the package some-package 2\.5 'no_"):
        find_plugin("defenses", "turn")


def test_a_plugin_is_its_object_and_where_it_is_from(declared):
    declared(defenses={"turn": "operator:neg"})
    plugin = find_plugin("defenses", "turn")
    assert (plugin.package, plugin.module) == ("some-package 2.5", "operator")
    assert plugin.target(3) == -3
    assert package_of("operator") == "some-package 2.5"
    same = find_plugin("defenses", "operator:neg")
    assert same.code == plugin.code
    declared()
    assert find_plugin("defenses", "operator:neg").code != plugin.code  # the version counts


def test_a_name_that_nobody_has(declared):
    declared()
    with pytest.raises(BrokenPlugin, match=r"no data set 'mine'.*the group 'labelleak\.datasets'"):
        find_plugin("datasets", "mine")
