"""The bucket becomes slow: the overview shows it, and its links lead to the slow upload."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from local.builds import REPOSITORY, Built
from local.evidence import trace_store
from prometheus.rules import Thresholds
from tests import panels
from tests.pipeline.asking import Grafana
from tests.pipeline.whole import quicken, stack
from tests.proxy import SlowBucket
from tests.system.blackbox import SOON, System, until, vehicles
from tests.tiles import shown, tiles

OVERVIEW = "bronze-overview"
QUERIES = [query for query in panels.queries() if query.dashboard == OVERVIEW]
TILES = tiles(OVERVIEW)
(POINTS,) = (query for query in panels.queries() if query.panel == "Upload duration" and query.exemplars)

#: A few slow uploads for a short time are enough for an alert.
QUICK = replace(Thresholds(), bad_min=2, page_hold_s=1)

DELAY_S = 3
#: The panels with a limit on uploads, or on times that include them: tiles turn red, graphs exceed their limit.
RED = {"Upload", "Queue", "Urgent alerts", "Since the last incident", "Oldest waiting message", "Records that wait now"}
RED |= {"Mean upload", "p95 upload", "p95 delivery"}
ABOVE = {"Mean upload duration by source", "Upload duration by source, p95", "Delivery duration", "Processing time"}
ALERTS = {"BronzeUploadsSlow", "BronzeDeliveriesLate"}


@dataclass(frozen=True)
class Slow:
    """The dashboards of a running system, and the bucket that its consumer writes to."""

    grafana: Grafana
    bucket: SlowBucket

    @contextmanager
    def uploads(self) -> Iterator[None]:
        """In the context, a fleet sends faster than the bucket stores."""
        system = self.grafana.system
        fleet = system.role("publisher")
        self.bucket.delay_s = DELAY_S
        with system.running(replace(fleet, command=(*fleet.command, "--interval-s", "0.2"))):
            yield


@pytest.fixture(scope="module")
def slow(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    """A system whose consumer writes through the proxy."""
    whole = stack(tmp_path_factory.mktemp("slow"), built)
    quicken(whole, QUICK)
    system = System(whole, SOON)
    canary = system.role("canary", BRONZE_CANARY_INTERVAL_S="5")  # without it, a page fires
    with (
        SlowBucket(whole.account.port) as bucket,
        system.running(*whole.servers),
        system.running(system.role("api"), system.role("consumer", AWS_ENDPOINT_URL_S3=bucket.url), canary),
    ):
        yield Slow(Grafana(system), bucket)


def test_a_slow_bucket_is_seen_and_found(slow: Slow) -> None:
    """On the overview, exactly the panels with a limit on uploads turn red. The slowest exemplar links to a slow
    upload. Alerts fire, and their sections in the runbook name the bucket.
    """
    grafana, system = slow.grafana, slow.grafana.system
    # earlier submissions would wait for the consumer and be late deliveries
    until("the consumer tends its lanes", lambda: system.metrics("consumer").all("bronze_lane_position"))
    until("no tile is red", lambda: not red(grafana))
    until("uploads are well", lambda: system.post("vehicles", vehicles("quick")[0]) and is_well(grafana))

    with slow.uploads():
        until("the overview is red", lambda: red(grafana) == RED, timeout_s=60)
        until("graphs are above their lines", lambda: above_line(grafana) >= ABOVE)
        fired = until("alerts", lambda: found if (found := firing(system)).keys() >= ALERTS else None)
    for name in ALERTS:
        assert "bucket" in runbook_entry(fired[name])
        assert fired[name] == f"{system.url}/runbook#{name.lower()}"
        assert f'id="{name.lower()}"' in system.get("/runbook").text

    points = grafana.exemplars(POINTS)
    trace_id = max(points, key=lambda trace: points[trace])
    assert points[trace_id] >= DELAY_S
    store = trace_store(system.stack)
    assert store
    file_path = until("its trace", lambda: store.trace(trace_id).file_path)
    assert file_path in slow.bucket.slowed
    print(f"slowest upload: {points[trace_id]:.2f} s, trace {trace_id}, {file_path}")  # noqa: T201


def test_the_slowest_writes_are_those_that_were_slow(slow: Slow) -> None:
    """The table of the latency dashboard, for writes above the limit, lists only slow uploads."""
    if "tempo" not in slow.grafana.system.stack.exporters.traces:
        pytest.skip("NOT RUN: TraceQL; there is no program `tempo` on PATH")
    (table,) = (query for query in panels.queries() if query.panel == "Slowest Bronze writes")
    grafana = replace(slow.grafana, typed={"at_least": "2s"})
    with slow.uploads():
        spans = until("slow writes", lambda: [s for trace in grafana.search(table) for s in trace["spanSet"]["spans"]])
    for span in spans:
        attributes = {attribute["key"]: attribute["value"] for attribute in span["attributes"]}
        assert attributes["bronze.file_path"]["stringValue"] in slow.bucket.slowed
        assert int(span["durationNanos"]) >= DELAY_S * 1e9


# --- what the panels show


def red(grafana: Grafana) -> set[str]:
    """The titles of the red tiles."""
    return {tile["title"] for tile in TILES if "red" in shown(grafana, OVERVIEW, tile).colours}


def is_well(grafana: Grafana) -> bool:
    """Whether something was delivered, and no tile is red."""
    (delivery,) = (tile for tile in TILES if tile["title"] == "p95 delivery")
    return bool((now := shown(grafana, OVERVIEW, delivery)).values) and now.colour == "green" and not red(grafana)


def above_line(grafana: Grafana) -> set[str]:
    """The titles of the graphs whose last 95th percentile is above their limit."""
    found = set()
    for graph in {query.panel for query in QUERIES if query.legend.startswith("limit: ")}:
        last = {
            query.legend: max((series.values[-1] for series in grafana.ask(query)), default=0)
            for query in QUERIES
            if query.panel == graph
        }
        (limit,) = (value for legend, value in last.items() if legend.startswith("limit: "))
        if max(value for legend, value in last.items() if "limit" not in legend) > limit:
            found.add(graph)
    return found


# --- alerts


def firing(system: System) -> dict[str, str]:
    """The runbook URL of each firing alert."""
    alerts = system.prometheus("alerts")["alerts"]
    return {
        alert["labels"]["alertname"]: alert["annotations"]["runbook_url"]
        for alert in alerts
        if alert["state"] == "firing"
    }


def runbook_entry(url: str) -> str:
    """The text below the heading that an alert links to."""
    text = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")
    entries = re.finditer(r"(?ms)^### (\w+)$(.+?)(?=^##|\Z)", text)
    (entry,) = (entry[2] for entry in entries if entry[1].lower() == url.rpartition("#")[2])
    return entry
