import json
import re

import pytest

from labelleak.errors import UnreadableFile
from labelleak.report.rounds import rounds_page

_HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u2028&amp;"


@pytest.fixture
def made(record):
    """Makes the record of a round; `record` is that of its audit."""

    def make(number=1, client="a", accuracy=0.958, **changes):
        score = record["score"] | {"accuracy": accuracy}
        policy = {
            "action": "warn",
            "measure": "accuracy",
            "threshold": 0.5,
            "attack": "ilrg",
            "time_limit": 30.0,
            "records": "r",
        }
        return {
            "schema": "labelleak/round/1",
            "round": number,
            "client": client,
            "label": "",
            "framework": "flower",
            "action": "warned",
            "verdict": "over" if accuracy > 0.5 else "within",
            "reason": f"ilrg restored {accuracy:.1%}",
            "policy": policy,
            "audit": record | {"score": score, "source": {"approximations": []}},
            "error": None,
            "epsilon": None,
            "delta": None,
            "aggregate_of": None,
            "seconds": 0.1,
            "time": "2026-01-02T03:04:05.000+00:00",
            "version": "0.1.0",
            **changes,
        }

    return make


@pytest.fixture
def several(made):
    """Two clients in three rounds, one of them before and after a defense, and a failure."""
    records = [made(number, "a", 0.9, label="before") for number in (1, 2, 3)]
    records += [
        made(number, "a", 0.3, label="after", epsilon=1.5 * number, delta=1e-5)
        for number in (1, 2, 3)
    ]
    records += [made(number, "b", 0.1, framework="nvflare", label="before") for number in (1, 2)]
    failed = {"verdict": "failed", "audit": None, "error": "NaN", "reason": "NaN"}
    return [*records, made(3, "b", label="before", **failed)]


@pytest.fixture
def browse(tmp_path, chromium):
    """Opens a page, runs a script in it, and returns the document as it is then."""

    def open_page(page, script=""):
        path = tmp_path / "page.html"
        # An error in a script of the page ends up in its title.
        watched = page.replace(
            "<style>", "<script>onerror = text => { document.title = text }</script><style>", 1
        )
        path.write_text(watched.replace("</body>", f"<script>{script}</script></body>"))
        return chromium(path, "--virtual-time-budget=2000")

    return open_page


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def table_of(shown):
    body = re.search(r'<table id="audits"[^>]*>.*?<tbody>(.*?)</tbody>', shown, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows
    ]


def test_every_record_is_on_the_page(several):
    page = rounds_page(several)
    content = data_of(page)
    assert len(content["rows"]) == len(several)
    found = {
        (row[0], content["texts"][row[1]], content["texts"][row[2]], row[7], row[12])
        for row in content["rows"]
    }
    assert found == {
        (
            one["round"],
            one["client"],
            one["label"],
            one["audit"]["score"]["accuracy"] if one["audit"] else None,
            one["epsilon"],
        )
        for one in several
    }
    # Class, restored, true.
    assert content["rows"][0][19] == [[0, 11, 12], [2, 12, 11], [9, 1, 1]]


def test_the_headline_says_the_gravest_first(several, made, document):
    text = document(rounds_page(several)).text
    assert "9 audits of 2 clients in 3 rounds" in text
    assert "3 of 9 audits found more than the policy allows." in text
    assert "The worst: 90.0% of the labels, client a, round 1, before." in text
    assert "true counts: treat it as you treat the labels" in text
    failed = several[-1]
    assert "1 of 2 audits failed" in rounds_page([failed, made(accuracy=0.1)])
    assert "No audit found more than" in rounds_page([made(accuracy=0.1)])
    assert "no evidence of privacy" in rounds_page([made(verdict="inconclusive")])


def test_without_true_counts_nothing_is_private(made, record):
    audit = record | {"true_counts": None, "score": None}
    page = rounds_page([made(audit=audit)])
    assert "true counts: treat" not in page
    assert data_of(page)["rows"][0][19] == [[0, 11, None], [2, 12, None], [9, 1, None]]
    shares = [0.5, 0, 0.4, 0, 0, 0, 0, 0, 0, 0.1]
    page = rounds_page([made(audit=audit | {"counts": None, "proportions": shares})])
    assert data_of(page)["rows"][0][19][0] == [0, 0.5, None]


@pytest.mark.parametrize(
    ("field", "value"),
    [("policy", None), ("audit", "x"), ("time", None), ("audit", {"score": {"accuracy": "x"}})],
)
def test_a_record_that_is_not_as_its_schema_says_is_one_line(made, field, value):
    broken = made() | {field: value}
    with pytest.raises(UnreadableFile, match="here: does not hold what its schema says"):
        rounds_page([made(), broken], source="here")


def test_many_classes_stay_in_the_records(made):
    page = rounds_page([made()], most_classes=2)
    assert data_of(page)["rows"][0][19] == []
    assert "are left out of this page" in page


def test_whatever_a_client_calls_itself_is_text(made, document, browse):
    poisoned = made(
        client=_HOSTILE, label=_HOSTILE, framework=_HOSTILE, reason=_HOSTILE, time=_HOSTILE
    )
    page = rounds_page([poisoned], _HOSTILE)
    parsed, clean = document(page), document(rounds_page([made()]))
    # The page's own data and script, and nothing that is fetched.
    assert parsed.loads() == ["script", "script"]
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in clean.tags]
    shown = browse(page, "document.querySelector('#audits td button').click()")
    assert "<img" not in shown
    assert "alert(1)" in table_of(shown)[0][1].replace("&lt;", "<")


def test_the_table_shows_what_was_found(several, browse):
    shown = browse(rounds_page(several))
    assert "<title>What each round gave away</title>" in shown
    rows = table_of(shown)
    assert len(rows) == 9
    assert rows[0] == [
        *("1", "a", "before", "flower", "ilrg", "over", "warned", "90.0%", "–", "no"),
        *("24 in 3 classes", "–", "no_bias"),
    ]
    assert [row[11] for row in rows if row[2] == "after"] == ["1.5", "3", "4.5"]
    assert "9 of 9 audits" in shown
    assert "the policy's limit, 50.0%" in shown
    assert "ε spent, by round" in shown


def test_lines_that_coincide_take_turns_and_others_do_not(made, browse):
    twins = [made(number, client, 0.5) for number in (1, 2) for client in ("a", "b")]
    shown = browse(rounds_page([*twins, *(made(number, "c", 0.2) for number in (1, 2))]))
    chart = shown[shown.index('aria-label="Share of the labels restored') :].partition("</svg>")[0]
    dashes = re.findall(r'stroke-dasharray="([^"]*)" stroke-dashoffset="([^"]*)"', chart)
    assert dashes == [("12 12", "0"), ("12 12", "-12"), ("none", "0")]


def test_a_limit_that_not_all_policies_have_says_so(made, browse):
    other = made(1, "b")
    other["policy"] |= {"measure": "small-cells", "threshold": None}
    assert "the limit of some policies, 50.0%" in browse(rounds_page([made(1, "a"), other]))


def test_an_audit_that_let_an_update_pass_does_not_say_that_it_was_sent(made, browse):
    first, second = (made(1, "a", label=label) for label in ("before", "after"))
    first["action"], second["action"] = "sent", "refused"
    actions = [row[6] for row in table_of(browse(rounds_page([first, second])))]
    assert sorted(actions) == ["let pass", "refused"]


def test_an_advantage_has_a_chart_of_its_own_with_its_limit(made, browse):
    records = [made(number, "a") for number in (1, 2)]
    for record in records:
        record["audit"]["score"]["relative_advantage"] = 0.25 * record["round"]
        record["policy"] |= {"measure": "advantage", "threshold": 0.3}
    shown = browse(rounds_page(records))
    assert [row[8] for row in table_of(shown)] == ["25.0%", "50.0%"]
    assert "the policy's limit, 30.0%" in shown
    assert 'aria-label="Advantage over a guess, by round"' in shown
    assert 'aria-label="Advantage over a guess, by round"' not in browse(rounds_page([made()]))


def known_after(number, accuracy, **changes):
    """What rounds tell together, as a record holds it."""
    return {
        "verdict": "over",
        "reason": f"{number} rounds together: combined restored {accuracy:.1%}",
        "rounds": list(range(1, number + 1)),
        "left_out": [],
        "score": {"accuracy": accuracy},
        "expected": None,
        **changes,
    }


def test_what_is_known_after_each_round_stands_beside_the_round_alone(made, browse):
    records = [made(1, accuracy=0.6, known=known_after(1, 0.6))]
    records.append(made(2, accuracy=0.55, known=known_after(2, 0.8)))
    shown = browse(rounds_page(records), "document.querySelector('#audits td button').click()")
    assert [row[7:10] for row in table_of(shown)] == [
        ["60.0%", "–", "60.0%"],
        ["55.0%", "–", "80.0%"],
    ]
    assert "After round 1 the server knows 60.0% of the labels: 1 rounds together" in shown
    assert 'aria-label="Share of the labels known after each round"' in shown
    plain = browse(rounds_page([made()]))
    assert 'aria-label="Share of the labels known after each round"' not in plain


def test_what_is_known_without_labels_or_not_at_all_is_said(made):
    own = known_after(2, 0.7, score=None, expected={"accuracy": 0.7})
    texts = data_of(rounds_page([made(known=own)]))["texts"]
    told = "knows 70.0% of the labels, by the attack's own standard errors: "
    assert any(told in one for one in texts)
    failed = known_after(2, 0.7, score=None, reason="the earlier records do not serve")
    row = data_of(rounds_page([made(known=failed)]))
    assert row["rows"][0][23] is None
    assert any("knows what no score says: the earlier records" in one for one in row["texts"])


@pytest.mark.parametrize(
    ("name", "choice", "amount"),
    [("client", 1, 6), ("label", 1, 3), ("verdict", 1, 1), ("framework", 2, 2)],
)
def test_it_can_be_filtered(several, browse, name, choice, amount):
    shown = browse(
        rounds_page(several),
        f"const select = document.querySelector('select[name={name}]');"
        f"select.value = {choice};"
        "select.dispatchEvent(new Event('change', { bubbles: true }));",
    )
    assert "<title>What each round gave away</title>" in shown
    assert len(table_of(shown)) == amount
    assert f"{amount} of 9 audits" in shown


@pytest.fixture
def two_runs(made):
    """Two runs in one folder; the record of the first is as it was before there were runs."""
    old = [made(number, client) for number in (1, 2) for client in "ab"]
    new = [
        made(number, client, 0.2, run="run 7", time=f"2026-01-03T03:04:0{number}.000+00:00")
        for number in (1, 2, 3)
        for client in "ab"
    ]
    return [*old, *new]


def test_the_newest_run_is_shown_with_the_newest_first(two_runs, browse):
    shown = browse(rounds_page(two_runs))
    assert "<title>What each round gave away</title>" in shown
    assert "6 of 10 audits" in shown
    assert [row[0] for row in table_of(shown)] == ["3", "3", "2", "2", "1", "1"]
    assert "in 3 rounds of 2 runs" in shown
    assert re.findall(r'<option value="\d">([^<]*)', shown)[:2] == ["run 7", "(none)"]


def test_all_runs_can_be_shown(two_runs, browse):
    shown = browse(
        rounds_page(two_runs),
        "const select = document.querySelector('select[name=run]');"
        "select.value = '';"
        "select.dispatchEvent(new Event('change', { bubbles: true }));",
    )
    assert "10 of 10 audits" in shown
    # A line for each client of each run.
    assert {"a, run (none)", "a, run run 7", "b, run (none)", "b, run run 7"} == set(
        re.findall(r"</i>([ab], [^<]*)</span>", shown)
    )


def test_what_a_message_tells_by_itself_is_shown(made, browse):
    leak = {"what": "number of local samples", "where": "m/num-examples", "why": "it says so"}
    page = rounds_page([made(leaks=[leak], run="run 7")])
    shown = browse(page, "document.querySelector('#audits td button').click()")
    assert "m/num-examples tells the number of local samples: it says so; run run 7" in shown


def test_an_audit_unfolds(several, browse):
    shown = browse(rounds_page(several), "document.querySelector('#audits td button').click()")
    assert "ilrg restored 90.0%." in shown
    assert '<span class="wrong">0: 11 / 12</span>' in shown
    assert "<span>9: 1 / 1</span>" in shown
    assert "1 local step, batches of 24" in shown


_WRONG = ("x", 3, [1], [{}], {"a": 1}, None, float("nan"), float("inf"), True)


@pytest.mark.parametrize("within", ["record", "audit", "policy", "score", "known"])
def test_values_of_other_types_are_a_page_or_one_line(made, within):
    """The right schema, and any value in any place: what a stranger's file may hold."""
    whole = json.dumps(made(known=known_after(1, 0.5)))
    told = set()
    for key in list(named(json.loads(whole), within)):
        for value in _WRONG:
            broken = json.loads(whole)
            named(broken, within)[key] = value
            try:
                page = rounds_page([made(), broken], source="r.jsonl")
            except UnreadableFile as error:
                told.add(str(error))
            else:
                assert page.endswith("</html>")
    assert told
    assert all(re.match("r.jsonl: does not hold what its schema says [^\n]+$", one) for one in told)


def named(record, within):
    audit = record["audit"]
    return {
        "record": record,
        "audit": audit,
        "policy": record["policy"],
        "score": audit["score"],
        "known": record["known"],
    }[within]


def test_a_record_that_lacks_its_audit_is_one_line(made):
    with pytest.raises(UnreadableFile, match=r"^the records of rounds: does not hold what"):
        rounds_page([made(audit="x", policy=None)])


def test_many_clients_and_rounds(made, browse):
    records = [made(number, f"client-{one}") for number in range(30) for one in range(60)]
    page = rounds_page(records)
    # 20,000 of them are a page of 6 MB.
    assert len(page) < 1800 * 300 + 50_000
    shown = browse(page, "document.getElementById('on').click()")
    assert len(table_of(shown)) == 100
    assert "page 2 of 18" in shown
    assert "all clients: median, least and most" in shown


@pytest.mark.parametrize("width", [320, 1200])
def test_pages_fit_the_screen(several, overflow, width):
    assert overflow(rounds_page(several), width) <= width


def test_a_column_that_no_audit_fills_is_left_out(made, browse):
    shown = browse(rounds_page([made(framework="", epsilon=None)]))
    head = re.search(r'<table id="audits"[^>]*>.*?</thead>', shown, re.DOTALL)[0]
    titles = re.sub("<[^>]*>", " ", head).split()
    assert "accuracy" in titles
    assert not {"framework", "\N{GREEK SMALL LETTER EPSILON}"} & set(titles)
    assert "framework" in re.sub("<[^>]*>", " ", browse(rounds_page([made()]))).split()
