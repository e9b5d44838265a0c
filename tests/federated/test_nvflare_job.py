"""The example job in FLARE's simulator: what the server gets of a site that refuses."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labelleak.federated import read_rounds

pytest.importorskip("nvflare", reason="needs the extra nvflare")

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvflare-job"

# Runs the example with a component on the server that notes what is in every result.
WATCHED_JOB = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(EXAMPLE)!r})
import job
from server_watch import Watch

out = Path(sys.argv[1])
made = job.make_job(out, refusing=["site-2"])
made.to_server(Watch(file=str(out / "seen.jsonl")), id="watch")
sys.exit(made.simulator_run(str(out / "workspace"), threads=3, log_config="concise"))
"""

SERVER_WATCH = """
import json

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey


class Watch(FLComponent):
    def __init__(self, file):
        super().__init__()
        self.file = file

    def handle_event(self, event_type, fl_ctx):
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION:
            result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            seen = {
                "client": fl_ctx.get_peer_context().get_identity_name(),
                "code": result.get_return_code(),
                "told": result.get_header("labelleak_refusal"),
                "arrays": sorted(result.get("DXO", {}).get("data", {})),
            }
            with open(self.file, "a") as file:
                file.write(json.dumps(seen) + "\\n")
"""


def test_the_server_never_gets_what_a_site_refuses(tmp_path):
    (tmp_path / "watched_job.py").write_text(WATCHED_JOB)
    (tmp_path / "server_watch.py").write_text(SERVER_WATCH)
    out = tmp_path / "out"
    out.mkdir()
    with (out / "log").open("w") as log:
        job = subprocess.Popen(
            [sys.executable, "watched_job.py", str(out)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            status = job.wait(timeout=900)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left, as it should be
                os.killpg(job.pid, signal.SIGKILL)
    printed = (out / "log").read_text()
    assert status == 0, printed
    seen = [json.loads(line) for line in (out / "seen.jsonl").read_text().splitlines()]
    assert sorted(result["client"] for result in seen) == sorted(["site-1", "site-2", "site-3"] * 2)
    for result in seen:
        if result["client"] == "site-2":
            assert result["arrays"] == []
            assert result["code"] == "TASK_RESULT_FILTER_ERROR"
            assert "refused by the site's policy" in result["told"]
        else:
            assert "fc.weight" in result["arrays"]
            assert (result["code"], result["told"]) == ("OK", None)
    # The rounds went on with the others, and each site wrote down its own.
    assert len(re.findall("Aggregated 2/3 results", printed)) == 2
    records = read_rounds(out / "records")
    assert {(r["client"], r["round"]) for r in records} == {
        (f"site-{site}", number) for site in (1, 2, 3) for number in (0, 1)
    }
    for record in records:
        assert record["action"] == ("refused" if record["client"] == "site-2" else "warned")
        assert record["audit"]["score"]["accuracy"] > 0.5
