"""From an exemplar on a panel to its record, with every exporter of metrics."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq
import pytest

from local.builds import Built
from local.evidence import trace_store
from local.exporters import PROMETHEUS
from tests import panels
from tests.pipeline.asking import Grafana
from tests.pipeline.whole import stack
from tests.system.blackbox import System, ndjson, until, vehicles

#: Those of failed attempts lead to no record, and a commit to a table has a trace of its own.
POINTS = [
    query
    for query in panels.queries()
    if query.exemplars and 'bronze_outcome="failure"' not in query.expr and query.dashboard != "bronze-tables"
]
RECORDS = 3
#: A scrape misses the exemplars of an export that the next export has already replaced, which is likely for exports
#: that were retried after the collector's start (`exporters/metrics/prometheus-scrape.yaml`). Others lose none.
SENT_MAX = {"prometheus-scrape": 3}
#: The default interval of metric exports: an exemplar lasts until the next export.
SOON = {"BRONZE_FLUSH_AGE_S": "0.2"}


@pytest.fixture(scope="module")
def with_metrics(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], System]]:
    """Switches the running system to a metrics layer; only its collector restarts."""
    whole = stack(tmp_path_factory.mktemp("chain"), built)
    system = System(whole, SOON)
    others = [program for program in whole.servers if program.name != whole.collector.name]
    with ExitStack() as running:
        running.enter_context(system.running(*others))
        collector = running.enter_context(ExitStack())
        running.enter_context(system.running(system.role("api"), system.role("consumer")))

        def swap(layer: str) -> System:
            swapped = replace(whole, exporters=replace(whole.exporters, metrics=(layer,)))
            collector.close()
            assert swapped.servers  # makes Prometheus' targets
            collector.enter_context(system.running(swapped.collector))
            return replace(system, stack=swapped)

        yield swap


def on_each_panel(system: System, lines: list[bytes], sent_max: int) -> dict[str, Any]:
    """Sends a submission and waits until every panel with exemplars shows it; sends another one if it is lost, up to
    `sent_max`. Returns the API's answer.
    """
    accepted: dict[str, Any] = system.post("vehicles", ndjson(lines)).raise_for_status().json()
    grafana = Grafana(system)
    try:
        for point in POINTS:
            what = f"{point.dashboard}: {point.panel}"
            until(what, lambda point=point: accepted["trace_id"] in grafana.exemplars(point))  # type: ignore[misc]
    except AssertionError:
        if sent_max == 1:
            raise
        return on_each_panel(system, lines, sent_max - 1)
    return accepted


@pytest.mark.parametrize("layer", PROMETHEUS)
def test_an_exemplar_on_a_panel_leads_to_its_record(layer: str, with_metrics: Callable[[str], System]) -> None:
    """Every panel with exemplars shows one of a submission that was just sent. Its trace names the object, and the
    object contains the record.
    """
    system = with_metrics(layer)
    lines = vehicles(layer, RECORDS)
    accepted = on_each_panel(system, lines, SENT_MAX.get(layer, 1))
    trace_id = accepted["trace_id"]

    store = trace_store(system.stack)
    assert store
    file_path = until("the trace's upload", lambda: store.trace(trace_id).file_path)
    rows = pq.read_table(BytesIO(system.body(file_path))).to_pylist()
    sent_rows = [row for row in rows if row["_trace_id"] == trace_id]
    assert [row["_payload"].encode() for row in sent_rows] == lines
    assert {row["_submission_id"] for row in sent_rows} == {accepted["submission_id"]}
    print(  # noqa: T201
        f"{layer}: {accepted['submission_id']}, on {len(POINTS)} queries of panels; trace {trace_id}; {file_path}; "
        f"record {sent_rows[0]['_record_index']}: {sent_rows[0]['_payload']}"
    )
