import pytest

from labelleak.report.audit import audit_page
from labelleak.report.experiments import study_page
from labelleak.report.pages import typeset

_HOSTILE = (
    '<script>alert(1)</script>"><img src=x onerror=alert(2)></style></svg>{{ 7 * 7 }}$\\frac$ &amp;'
)
_STRUCTURE = {"schema", "key", "panel", "x_scale", "name", "attack", "inside", "verdict", "metrics"}


def _poisoned(content, key=None):
    if isinstance(content, dict):
        return {
            k: v if k in _STRUCTURE and not isinstance(v, list | dict) else _poisoned(v, k)
            for k, v in content.items()
        }
    if isinstance(content, list):
        return [_poisoned(value, key) for value in content] if key != "metrics" else content
    return _HOSTILE if isinstance(content, str) else content


def test_signs_and_gaps_have_their_own_characters():
    texts = ["-", "-0.250", "+0.250", "1.7e-11", "-1e-5", "yes"]
    assert [typeset(text) for text in texts] == [
        "–", "−0.250", "+0.250", "1.7e-11", "−1e-5", "yes"
    ]  # fmt: skip


def test_pages_load_nothing(record, table, figure, document):
    for page in (audit_page(record, [record]), study_page([table, figure], "Run")):
        parsed = document(page)
        assert parsed.loads() == []
        assert "svg" in [tag for tag, _ in parsed.tags]
        assert page.count("<!DOCTYPE") == 1


def test_the_check_of_loads_finds_them(document):
    page = (
        '<link href="a"><img src="b"><p style="background: url(c)" onclick="d">'
        '<style>@import "e"; p { background: url(//f) } q { fill: url(#g) }</style><a href="#h">'
    )
    assert len(document(page).loads()) == 7


@pytest.mark.parametrize("kind", ["audit", "study"])
def test_whatever_a_record_says_is_text(kind, record, table, figure, document):
    if kind == "audit":
        poisoned = _poisoned(record)
        page = audit_page(poisoned, [poisoned], description=_HOSTILE, command=_HOSTILE)
        clean = audit_page(record, [record], description="d", command="c")
    else:
        page = study_page([_poisoned(table), _poisoned(figure)], _HOSTILE)
        clean = study_page([table, figure], "Run")
    parsed = document(page)
    assert parsed.loads() == []
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in document(clean).tags}
    assert parsed.text.count(" ".join(_HOSTILE.split())) >= 6


@pytest.mark.parametrize("kind", ["audit", "study", "hostile"])
def test_no_page_is_wider_than_a_phone(kind, record, table, figure, overflow):
    if kind == "hostile":
        long = "unbreakable" * 40
        table["rows"][1] |= {"label": long, "data": long, "note": long, "sampler": long}
        table |= {"title": long, "omitted": [long]}
        record |= {"head": long, "source": {"before": long}, "reason": long}
    if kind != "study":
        assert overflow(audit_page(record, [record] * 2, command="c" * 200), 375) == 375
    if kind != "audit":
        assert overflow(study_page([table, figure], "Run"), 375) == 375


def test_the_measure_of_width_finds_what_is_too_wide(overflow):
    assert (
        overflow('<!DOCTYPE html><body style="margin: 0"><p style="width: 600px">wide', 375) == 600
    )
