import dataclasses
import json

import pytest

import labelleak
from labelleak.audit.record import SCHEMA, AuditRecord, read_record
from labelleak.audit.verdict import Verdict
from labelleak.errors import UnreadableFile
from labelleak.storage import write_json

RECORD = AuditRecord(
    attack="ilrg",
    classes=4,
    features=5,
    head="fc",
    batch_size=6,
    local_steps=1,
    present=[0, 1, 3],
    counts=[2, 1, 0, 3],
    rounded=[2, 1, 0, 3],
    proportions=None,
    certified=False,
    flags=[{"name": "no_bias", "text": "no bias"}],
    true_counts=None,
    score=None,
    score_rounded=None,
    threshold=None,
    verdict="audited",
    reason="none",
    seconds=0.1,
)


def test_a_record_is_plain_json_and_is_read_back(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, RECORD.as_dict())
    content = read_record(path)
    assert content == RECORD.as_dict() == json.loads(json.dumps(content, allow_nan=False))
    assert content["schema"] == SCHEMA
    assert content["version"] == labelleak.__version__


@pytest.mark.parametrize("verdict", Verdict)
def test_the_exit_status_is_the_verdicts(verdict):
    record = dataclasses.replace(RECORD, verdict=verdict.value)
    assert record.exit_status == verdict.exit_status


@pytest.mark.parametrize("text", ["[]", '{"schema": "other/9"}', "3"])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile, match="no audit record"):
        read_record(path)
