"""The ledger's number when all processes stop reporting at once: it stays until it is not known, and never falls."""

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path

from bronze.telemetry.promql import LEDGER, LEDGER_AGE_S_MAX, in_ledger, waiting
from local.builds import Built
from tests.pipeline.past import filled

STEP_S = 5
#: Two processes report in turn; the one that reports last has read its number a second before the other one.
AHEAD, BEHIND = ("api", 0, 100), ("consumer", 1, 60)
STEPS = 40


def test_the_ledger_never_falls_when_reports_stop(built: Built, tmp_path: Path) -> None:
    greatest = AHEAD[2] + STEPS
    stopped = int(time.time()) - 400
    lines = []
    for outcome in ("accepted", "stored"):
        for role, later_s, first in (AHEAD, BEHIND):
            labels = f'job="bronze/{role}",instance="{role}",bronze_source="vehicles",bronze_outcome="{outcome}"'
            lines += [
                f"bronze_ledger_records{{{labels}}} {first + step} {stopped - (STEPS - step) * STEP_S + later_s}"
                for step in range(STEPS + 1)
            ]
    with filled(built, tmp_path, ["# TYPE bronze_ledger_records gauge", *lines]) as api:

        def over_time(query: str) -> dict[int, float]:
            """The values by the seconds since the reports stopped."""
            asked = {"query": query, "start": stopped, "end": stopped + 320, "step": 1}
            with urllib.request.urlopen(f"{api}query_range?{urllib.parse.urlencode(asked)}", timeout=30) as answer:
                found = json.load(answer)["data"]["result"]
            return {int(float(at)) - stopped: float(value) for series in found for at, value in series["values"]}

        accepted = over_time(in_ledger(f'bronze_ledger_records{{{LEDGER}, bronze_outcome="accepted"}}'))
        assert set(accepted.values()) == {greatest}
        assert LEDGER_AGE_S_MAX - 1 <= max(accepted) <= LEDGER_AGE_S_MAX + 1
        assert set(over_time(waiting(LEDGER)).values()) == {0}
        # what it would be otherwise: the process that Prometheus forgets last has a smaller number
        plain = over_time(f'max by (bronze_source) (bronze_ledger_records{{{LEDGER}, bronze_outcome="accepted"}})')
        assert set(plain.values()) == {greatest, BEHIND[2] + STEPS}
