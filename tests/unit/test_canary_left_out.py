"""The canary's records are no data: no number that sums over sources contains them."""

import re
from collections.abc import Iterator

import pytest

from bronze.api import glance as page
from bronze.records.sources import CANARY
from bronze.telemetry.promql import NO_CANARY
from bronze.telemetry.signals import attribute
from prometheus import rules
from prometheus.rules import Thresholds
from tests import panels
from tests.panels import VALUES
from tests.promql import label, selectors, series

#: Alerts about what must not happen to any source, and those that compare the ways of telemetry, by process.
OF_ALL_SOURCES = {
    "BronzeRecordsMissing",
    "BronzeLaneHalted",
    "BronzeTelemetryMissing",
    "bronze:verdict",
    "bronze:source_verdict",
    "instance:counter:otlp",
    "instance:counter:scraped",
}
#: What tells the canary apart: the label, the canary's value of it, and what a metric has to have to be told by it.
TOLD_BY = (
    (label(attribute.bronze_source), CANARY, attribute.bronze_source),
    (label(attribute.messaging_destination_name), f"bronze.{CANARY}", attribute.messaging_destination_name),
    (label(attribute.http_route), f"/v1/ingest/{CANARY}", attribute.http_route),
)


def queries() -> Iterator[tuple[str, str]]:
    for of_file in rules.groups(Thresholds()).values():
        for group in of_file:
            yield from ((rule.name, rule.expr) for rule in group.rules if rule.name not in OF_ALL_SOURCES)
    for query in panels.queries():
        if query.datasource == "prometheus":
            yield f"{query.dashboard}: {query.panel}", query.asked({**VALUES, "source": ".*"})
    yield from page.QUERIES.items()
    yield "the slowest writes", page.EXEMPLARS


def includes_canary(expr: str) -> str | None:
    """The selector that reads the canary's series together with others; None if there is none."""
    for name, matchers in selectors(expr):
        metric = series().get(name)
        if metric is None or metric.name.startswith("bronze.canary."):
            continue
        for key, value, needed in TOLD_BY:
            if needed not in metric.attributes:
                continue
            of_key = [(operator, wanted) for found, operator, wanted in matchers if found == key]
            excludes = any(
                operator == "=" or (operator in {"!=", "!~"} and re.fullmatch(wanted, value))
                for operator, wanted in of_key
            )
            if not excludes and not any(key == "job" and wanted == "bronze/canary" for key, _, wanted in matchers):
                return f"{name}{matchers}"
    return None


@pytest.mark.parametrize(("name", "expr"), [*queries()])
def test_a_query_leaves_the_canary_out(name: str, expr: str) -> None:
    assert includes_canary(expr) is None


def test_a_query_that_includes_the_canary_is_found() -> None:
    """Else the test above would pass whatever the queries were."""
    assert includes_canary('sum(rate(bronze_records_total{job="bronze/api"}[5m]))')
    assert includes_canary('bronze_records_total{job="bronze/api", bronze_source=~".*"}')
    assert includes_canary('http_server_request_duration_seconds_count{job="bronze/api"}')
    assert includes_canary(f"bronze_records_total{{{NO_CANARY}}}") is None


def test_tables_of_uploads_leave_the_canary_out() -> None:
    asked = [query.expr for query in panels.queries() if "upload (" in query.expr]
    assert asked
    assert all(f'name != "upload {CANARY}"' in expr for expr in asked)
