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
    assert text.index("95.8% of the private labels were restored") < text.index("Audited.")
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
    assert [found for *_, found in _rows(page)][:3] == ["45.5%", "0.0%", "50.0%"]
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


ADVICE = {
    "summary": "the cheapest change that is within the limit: batch size",
    "changes": [
        {
            "name": "noise", "setting": "Gaussian", "cosine": 0.995, "epsilon": 1.5e5,
            "accuracy": 1.0, "advantage": 1.0, "verdict": "over threshold",
        },
        {
            "name": "head kept local", "setting": "not sent", "cosine": None, "epsilon": None,
            "accuracy": None, "advantage": None, "verdict": "inconclusive",
        },
    ],
    "untried": [{"name": "a later round", "why": "it needs the model"}],
}  # fmt: skip


def test_changes_stand_below_the_verdict_with_their_price(record, document, overflow):
    page = audit_page(record, [], advice=ADVICE)
    text = document(page).text
    assert "The cheapest change that is within the limit: batch size." in text
    assert "noise Gaussian, ε = 150,000 0.995 1.000 1.000 over" in text
    assert "head kept local not sent – – – incon\N{SOFT HYPHEN}clusive" in text
    assert "a later round: it needs the model" in text
    assert overflow(page, 390) == 390


def test_what_small_cells_a_change_leaves_is_told_under_that_rule(record, document):
    changes = [
        change | {"told": told} for change, told in zip(ADVICE["changes"], (3, None), strict=True)
    ]
    record |= {"measure": "small-cells", "score": record["score"] | {"small_cells_told": 4}}
    text = document(audit_page(record, [], advice=ADVICE | {"changes": changes})).text
    assert "as it is 1.000 4 " in text
    assert "noise Gaussian, ε = 150,000 0.995 3 1.000 over" in text


def test_distances_of_shares_are_columns_only_without_counts(record, document):
    record["score"] |= {"shares_linf": 0.02, "shares_cosine": 0.01, "shares_js": 0.1}
    title = "largest error of a share"
    assert title not in document(audit_page(record, [])).text
    record["score"] |= {"accuracy": None}
    assert title in document(audit_page(record, [])).text


def test_nothing_that_was_observed_stands_twice(record):
    told = audit_page(record | {"source": {"kind": "gradients", "batch_size": 24}}, [])
    assert told.count("<dt>Batch size</dt>") == 1


def test_flags_come_with_what_to_do(record, document):
    record["flags"][0]["remedy"] = "send the bias along"
    text = document(audit_page(record, [])).text
    assert "no_bias: send the bias along" in text
    # The verdict is over a limit: changes are worth trying, unless they were tried.
    over = record | {"verdict": "over threshold"}
    assert "labelleak advise" in document(audit_page(over, [])).text
    assert "labelleak advise" not in document(audit_page(over, [], advice=ADVICE)).text


def test_the_limit_stands_with_what_was_observed(record, document):
    limit = "at most 25.0% of the labels"
    assert f"Limit {limit}" in document(audit_page(record | {"limit": limit}, [])).text


def test_intervals_are_drawn_and_told(record, document):
    intervals = [[max(0.0, count - 1.5), count + 1.5] for count in record["counts"]]
    page = audit_page(record | {"intervals": intervals}, [])
    assert "9.5 to 12.5" in document(page).text
    assert "95% interval: holds the true number 19 times in 20" in document(page).text
    assert "95% interval" not in document(audit_page(record, [])).text
