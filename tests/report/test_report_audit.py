import re

from labelleak.report.audit import audit_page


def _rows(page):
    return re.findall(r"<tr( class=\"wrong\")?><td>(\d+)</td><td>(\d+)</td>\s*<td>(.*?)</td>", page)


def test_true_and_restored_counts_stand_side_by_side(record):
    rows = _rows(audit_page(record, []))
    assert [(int(true), int(found)) for _, _, true, found in rows] == list(
        zip(record["true_counts"], record["counts"], strict=True)
    )
    # Classes 0 and 2 have a wrong number.
    assert [int(label) for wrong, label, _, _ in rows if wrong] == [0, 2]


def test_the_verdict_comes_first(record, document):
    text = document(audit_page(record, [])).text
    assert text.index("95.8 % of the private labels were restored") < text.index("Audited.")
    assert "All private labels were restored" not in text
    record["score"] |= {"exact": True, "accuracy": 1.0}
    text = document(audit_page(record, [])).text
    assert "All private labels were restored, each class with its exact number. Audited." in text


def test_an_inconclusive_verdict_looks_like_a_warning(record):
    assert '<div class="box">' in audit_page(record, [])
    assert '<div class="box warning">' in audit_page(record | {"verdict": "inconclusive"}, [])


def test_a_set_has_no_numbers_and_no_chart(record):
    page = audit_page(record | {"counts": None, "rounded": None, "score": None}, [])
    assert [found for *_, found in _rows(page)] == [
        "present" if label in (0, 2, 9) else "–" for label in range(10)
    ]
    assert "<svg" not in page


def test_without_a_batch_size_there_are_shares(record):
    shares = [0.455, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.045]
    page = audit_page(record | {"counts": None, "proportions": shares, "batch_size": None}, [])
    assert [found for *_, found in _rows(page)][:3] == ["45.5 %", "0.0 %", "50.0 %"]
    assert "<dt>Batch size</dt><dd>unknown</dd>" in page


def test_without_labels_there_is_no_score(record):
    page = audit_page(record | {"true_counts": None, "score": None}, [])
    assert re.findall(r"<tr><td>(\d)</td>\s*<td>(\d+)</td>", page)[2] == ("2", "12")
    assert "were restored" not in page
    assert "LeAcc" not in page


def test_of_many_classes_the_present_ones_are_shown(record):
    counts = [1] * 70 + [0] * 30
    page = audit_page(
        record
        | {"classes": 100, "counts": counts, "true_counts": counts, "present": list(range(70))},
        [],
    )
    assert len(_rows(page)) == 70
    assert "The table has 10 more classes." in page
