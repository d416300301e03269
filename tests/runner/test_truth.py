"""`make truth`: its page, its readings of Prometheus, the synthetic day, and the clock that it shifts."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from local.builds import REPOSITORY, build_all
from tests.truth import day
from tests.truth.page import written
from tests.truth.run import NUMBERS
from tests.truth.series import Prometheus, tiles

STEPS = 720


def prometheus(series: list[dict[str, object]]) -> Prometheus:
    """A Prometheus that answers every query with these series."""
    asked = Prometheus(0)
    answer = httpx.Response(200, json={"data": {"result": series}})
    asked._client = httpx.Client(base_url="http://test", transport=httpx.MockTransport(lambda _: answer))
    return asked


def test_raw_samples_are_added_up_with_each_reset_and_from_the_begin_of_the_range() -> None:
    """A counter rises by 5, begins again at 0 and rises to 3, in the range; an earlier rise does not count."""
    values = [(t, str(v)) for t, v in ((90, 1), (99, 10), (105, 15), (110, 0), (115, 3))]
    assert prometheus([{"metric": {}, "values": values}]).kept("x", 100, 120) == 8
    assert prometheus([{"metric": {}, "values": values[2:]}]).kept("x", 100, 120) == 18  # a new series


def test_each_firing_of_an_alert_counts_once() -> None:
    """Samples in a row are one firing; after a pause of more than some evaluations, it is another one."""
    values = [(at, "1") for at in (*range(0, 60, 15), *range(300, 330, 15))]
    metric = {"__name__": "ALERTS", "alertname": "BronzeX", "alertstate": "firing", "bronze_source": "status"}
    firings = prometheus([{"metric": metric, "values": values}]).firings(0, 400)
    assert [(f.alert, f.labels, f.began, f.ended) for f in firings] == [
        ("BronzeX", {"bronze_source": "status"}, 0, 45),
        ("BronzeX", {"bronze_source": "status"}, 300, 315),
    ]


def test_the_numbers_that_are_compared_are_on_the_dashboard() -> None:
    """By the titles of their panels. The requests are those of submissions, without look-ups and the canary's."""
    assert set(NUMBERS) <= tiles().keys()
    assert 'http_route="/v1/ingest/{source}"' in tiles()["Requests"]


def test_the_expressions_are_exact_on_a_synthetic_day(tmp_path: Path) -> None:
    """With kills, restarts and gaps, BronzeRecordsMissing is never pending, and the page's numbers are exact."""
    made = day.make(1, STEPS)
    assert made.kills
    assert made.gaps
    assert day.check(build_all().promtool, tmp_path, made) == ""


def test_the_synthetic_day_finds_a_missing_object(tmp_path: Path) -> None:
    """The same day with an object that is missing for some minutes: the alert is pending, and promtool says so."""
    made = day.make(1, STEPS, missing_at=range(300, 320))
    assert any(1 in values for series, values in made.series.items() if "missing_objects" in series)
    assert "BronzeRecordsMissing" in day.check(build_all().promtool, tmp_path, made)


def test_a_shifted_clock_shifts_what_python_code_reads(tmp_path: Path) -> None:
    """Time and date are an hour ahead, also of code that imported the function; durations are not."""
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("d", 3600))
    code = """
import sys, time
from pathlib import Path
from tests.truth import shifted_clock
real = time.time()
shifted_clock.shift_time(shifted_clock.Clock(Path(sys.argv[1])).read)
from time import time_ns
import datetime
shifted_clock.shift_datetime()
import datetime as dt
now = dt.datetime.now(dt.UTC)
assert type(now) is shifted_clock.RealDatetime and isinstance(now, dt.datetime)
print(*(round((at - real) / 60) for at in (time.time(), time_ns() / 1e9, now.timestamp())))
"""
    command = [sys.executable, "-c", code, str(clock)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["60", "60", "60"]


def test_the_committed_page_is_what_the_results_say() -> None:
    results = REPOSITORY / "docs" / "truth.json"
    if not results.exists():
        pytest.skip("no results yet")
    assert (REPOSITORY / "docs" / "truth.md").read_text() == written(json.loads(results.read_text()))
