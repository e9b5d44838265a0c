import importlib
import sys

import pytest

from labelleak.errors import BrokenPlugin
from labelleak.plugins import essence_of, source_hash

PLAIN = """
def double(number):
    return 2 * number
"""
DRESSED = """
'''A module.'''

def double(
    number,  # of any kind
):
    '''Twice the number.'''
    return (
        2 * number
    )
"""


def test_words_and_layout_do_not_matter_and_code_does():
    assert essence_of(PLAIN) == essence_of(DRESSED)
    assert essence_of(PLAIN) != essence_of(PLAIN.replace("2", "3"))
    assert essence_of(PLAIN) != essence_of(PLAIN.replace("2 * number", "2 + number"))
    assert essence_of("x = 'a'") != essence_of("x = 'b'")


def test_the_essence_is_that_of_every_version_of_python():
    """Fields that only newer versions have, such as `type_params`, are empty in older code."""
    assert essence_of("f = [a]") == (
        "(Module body=(Assign targets=(Name id='f' ctx=(Load)),".replace("Load", "Store")
        + " value=(List elts=(Name id='a' ctx=(Load)), ctx=(Load))),)"
    )
    assert "type_params" not in essence_of(PLAIN)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Write files, import a module of them afresh, and give its hash."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = {*sys.modules}

    def forget():
        for name in {*sys.modules} - before:
            del sys.modules[name]
        importlib.invalidate_caches()

    def load(name, **files):
        forget()
        for path, text in files.items():
            file = tmp_path / path.replace("__in__", "/").replace("_py", ".py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return source_hash(importlib.import_module(name))

    yield load
    forget()


def test_a_lone_module_is_known_by_itself_and_by_what_it_imports_beside_it(loaded):
    files = {"helper_py": "x = 1\n", "further_py": "y = 1\n", "other_py": "z = 1\n"}
    first = loaded("mine", mine_py="import helper\n", **files | {"helper_py": "import further\n"})
    assert loaded("mine", mine_py="import helper  # as before\n") == first
    assert loaded("mine", other_py="z = 2\n") == first
    deeper = loaded("mine", further_py="y = 2\n")
    assert deeper != first
    assert loaded("mine", mine_py="import helper\na = 1\n") not in (first, deeper)


def test_a_package_is_known_by_all_its_files(loaded):
    files = {"pack__in____init___py": "", "pack__in__a_py": "x = 1\n", "pack__in__b_py": "y = 1\n"}
    first = loaded("pack.a", **files)
    assert loaded("pack.b") == first
    assert loaded("pack.a", pack__in__b_py="y = 2\n") != first


def test_what_counts_is_the_source_as_it_was_loaded(loaded, tmp_path):
    first = loaded("mine", mine_py="x = 1\n")
    module = sys.modules["mine"]
    (tmp_path / "mine.py").write_text("x = 22\n")
    assert source_hash(module) == first
    importlib.reload(module)
    assert module.x == 22
    assert source_hash(module) != first


def test_a_module_without_source_is_refused():
    module = type(sys)("nowhere")
    with pytest.raises(BrokenPlugin, match="the source of 'nowhere' cannot be read"):
        source_hash(module)
