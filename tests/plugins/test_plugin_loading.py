import sys

import pytest

from labelleak.errors import BrokenPlugin
from labelleak.plugins import add_folder, added_folders, load_object


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules that is found, and forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("labelleak.plugins.loading._folders", [])
    before = {*sys.modules}
    add_folder(tmp_path)
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


def test_an_object_is_loaded_from_an_added_folder(folder):
    (folder / "own_things.py").write_text("class Outer:\n    inner = 7\n")
    assert load_object("own_things:Outer.inner", "attack") == 7
    assert added_folders() == (str(folder),)


def test_an_added_folder_hides_nothing_that_python_finds_by_itself(folder):
    (folder / "fractions.py").write_text("Fraction = 'a stranger'\n")
    sys.modules.pop("fractions", None)
    assert load_object("fractions:Fraction", "attack") != "a stranger"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:a", r"attack 'no_such_module:a': there is no module 'no_such_module' in "),
        ("own.gone:a", r"there is no module 'own' in the installed packages, PYTHONPATH and '/"),
        ("own_broken:a", r"importing 'own_broken' failed: KeyError: 'x' \(own_broken.py, line 2\)"),
        ("own_needy:a", r"importing 'own_needy' failed: ModuleNotFoundError: No module named 'no"),
        ("own_syntax:a", r"importing 'own_syntax' failed: SyntaxError"),
        ("own_good:atack", r"'own_good' \(.*own_good.py\) has no 'atack'; it has attack"),
        ("own_good", r"write module:name, as in my_module:attack"),
        ("own good:a", r"write module:name"),
        ("own_good:", r"write module:name"),
    ],
)
def test_errors_say_what_was_looked_for_and_where(folder, reference, message):
    (folder / "own_broken.py").write_text("things = {}\nthings['x']\n")
    (folder / "own_needy.py").write_text("import no_such_dependency\n")
    (folder / "own_syntax.py").write_text("def\n")
    (folder / "own_good.py").write_text("attack = 1\n")
    with pytest.raises(BrokenPlugin, match=message):
        load_object(reference, "attack")


def test_a_folder_that_is_not_there():
    with pytest.raises(BrokenPlugin, match="'/no/such/folder' is not there"):
        add_folder("/no/such/folder")
