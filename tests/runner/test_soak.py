"""`make soak`, interrupted after some faults."""

import json
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT

import pytest

from local.builds import REPOSITORY
from local.machine import Deadline
from tests.soak.slopes import Verdict

FAULTS = 2


@pytest.mark.timeout(300)
def test_an_interrupted_run_is_judged_by_what_there_is(tmp_path: Path) -> None:
    """After Ctrl-C it waits until everything is stored, and says what it found."""
    folder, log = tmp_path / "soak", tmp_path / "log"
    options = ("--hours", "0.1", "--rate", "5", "--fault-s", "5", "--seed", "9", "--folder", str(folder))
    with log.open("wb") as output:
        # as a script runs it in the background
        command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "tests.soak", *options]
        running = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
    deadline = Deadline(120)
    # the first samples have no quantiles
    while any(text not in log.read_text() for text in (f"{FAULTS} faults", "store p99", "queryable p95")):
        assert running.poll() is None, log.read_text()
        assert not deadline.passed(), log.read_text()
        time.sleep(0.2)
    running.send_signal(SIGINT)
    assert running.wait(timeout=200) == 0, log.read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["interrupted"]
    assert result["problems"] == []
    assert len(result["faults"]) >= FAULTS
    records = result["records"]
    assert records["accepted"] > 50
    assert (records["lost"], records["doubled"]) == (0, 0)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    named = {name for sample in samples for name in sample}
    of_series = {one["series"]["name"] for one in result["series"]}
    assert of_series <= named, of_series - named
    assert {one["verdict"] for one in result["series"]} <= {Verdict.FLAT, Verdict.UNDECIDED}
