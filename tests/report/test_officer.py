import pytest

from labelleak.report.officer import officer_page


def text_of(document, record, **more):
    return document(officer_page(record, **more)).text


def test_it_says_who_looks_what_was_done_and_how_far_it_goes(record, document):
    text = text_of(document, record)
    for heading in (
        *("What leaves the site", "Who is assumed to look", "with what strength"),
        *("What was found", "How far this goes", "What can be done"),
    ):
        assert heading in text
    assert "made of 24 records" in text
    assert "95.8% of the labels" in text
    assert "no_bias" in text
    assert "no proof of safety" in text


def test_label_sets_have_fewer_or_more_labels_than_records(record, document):
    assert "made of 16 records" in text_of(document, record | {"samples": 16})
    assert "number of records" not in text_of(document, record | {"samples": None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "No limit was set"),
        ({"threshold": 0.99}, "No more was found than the limit allows."),
        ({"verdict": "over threshold", "threshold": 0.5}, "More can be told"),
        ({"verdict": "inconclusive"}, "proves nothing either way"),
        ({"measure": "small-cells", "floor": 5}, "no class with fewer than 5 records"),
        ({"measure": "small-cells"}, "No more was found than the limit allows."),
        ({"measure": "exact"}, "not all numbers may be told exactly"),
        ({"measure": "advantage", "limit": "at most 50.0% of it"}, "at most 50.0% of it"),
        ({"certified": True}, "the numbers are proven"),
        ({"score": None, "true_counts": None}, "the site's labels were not given"),
        ({"score": None, "true_counts": None}, "never shown the site's own labels."),
        ({}, "never shown the site's own labels: they were used afterward only"),
        ({"seconds": 0.02}, "found in less than a second"),
        ({"seconds": 61.7}, "found in 61.7 seconds"),
        ({"ceiling": {"text": "At best 71%."}}, "At best 71%."),
    ],
)
def test_every_record_is_told_in_words(record, document, changes, words):
    assert words in text_of(document, record | changes)


def test_it_holds_the_number_of_no_class_and_loads_nothing(record, document):
    record["counts"] = record["true_counts"] = [7771, 7772] + [0] * 8
    page = officer_page(record)
    assert "7771" not in page
    assert document(page).loads() == []


def test_changes_that_pass_are_named(record, document):
    change = {
        "name": "batch size", "setting": "48 instead of 24", "cosine": 0.9, "verdict": "audited",
    }  # fmt: skip
    advice = {"summary": "the cheapest change is a larger batch", "changes": [change]}
    text = text_of(document, record, advice=advice)
    assert "The cheapest change is a larger batch." in text
    assert "48 instead of 24: within the limit; with a cosine of 0.90" in text


def test_it_says_what_to_do_without_options_of_a_command(record, document):
    record["flags"][0] |= {"remedy": "send it along", "options": "--head"}
    text = text_of(document, record)
    assert "send it along" in text
    assert "set a limit" in text
    assert "--" not in text
    assert "--" not in text_of(document, record | {"score": None, "true_counts": None})


def test_it_fits_a_phone(record, overflow):
    assert overflow(officer_page(record), 390) == 390
