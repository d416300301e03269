"""The page's queries to Prometheus: they equal those of the dashboards and have a time limit."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from bronze.api import glance
from bronze.api.formats import format_duration
from bronze.api.glance import ASK_S_MAX, GlanceReader, UndeclaredFields, slowest, undeclared
from bronze.api.tiles import tiles
from bronze.errors import Unavailable
from bronze.objectives import DURATION_S_MAX
from bronze.records.expectations import Expectation
from bronze.servers.prometheus import Exemplar, Prometheus, Sample
from bronze.telemetry.schema import registry
from grafana import promql
from local.machine import limit_s
from local.programs import LOOPBACK
from prometheus import data, rules
from prometheus.rules import Recording, Thresholds
from tests.promql import label, labels_of, selectors, series


def all_recordings() -> list[Recording]:
    every = (rule for of_file in rules.groups(Thresholds()).values() for group in of_file for rule in group.rules)
    return [rule for rule in every if isinstance(rule, Recording)]


RECORDINGS = {rule.name for rule in all_recordings()}

each_query = pytest.mark.parametrize(
    "query", [*glance.QUERIES.values(), glance.UNDECLARED, glance.FOUND, glance.EXEMPLARS]
)


@each_query
def test_a_query_reads_only_metrics_that_exist(query: str) -> None:
    """Each name is in the schema or a recording; each label belongs to its metric, and each enum value to its label."""
    assert rules.names(query) <= series().keys() | RECORDINGS
    for name, matchers in selectors(query):
        assert {key for key, _, _ in matchers} <= labels_of(name)
        assert {("job", "="), ("job", "=~")} & {(key, operator) for key, operator, _ in matchers}
        keys = {label(key): key for key in series()[name].attributes}
        for key, _, value in matchers:
            members = registry().attributes[keys[key]].members if key in keys else ()
            assert not members or value in members


def test_what_is_not_met_is_what_the_rules_record() -> None:
    """And the share of nulls has their window."""
    assert rules.names(glance.BROKEN) == {data.BROKEN}
    (broken,) = (rule.expr for rule in all_recordings() if rule.name == data.BROKEN)
    assert f"[{Thresholds().recent_s // 60}m]" in glance.FOUND
    assert f"[{Thresholds().recent_s}s]" in broken
    assert {expectation for expectation in Expectation if f'"{expectation}"' in glance.FOUND} == {*Expectation} - {
        Expectation.VALUES
    }


@pytest.mark.parametrize(("query", "label"), [glance.VERDICTS, glance.SOURCE_VERDICTS])
def test_verdicts_are_those_that_the_rules_record(query: str, label: str) -> None:
    (name,) = rules.names(query)
    written = [rule for rule in all_recordings() if rule.name == name]
    assert written
    assert all(label in rule.labels or label in rule.expr for rule in written)


def test_counts_are_those_of_the_dashboards() -> None:
    """The page and the tiles of the overview cannot disagree: both use the same query, for one hour."""

    def for_one_hour(expr: str) -> str:
        return expr.replace(promql.RANGE, "1h")

    data = 'job="bronze/consumer", bronze_source!="canary"'
    objects = promql.added(f'bronze_ledger_objects{{{promql.LEDGER}, bronze_source!="canary"}}')
    assert glance.QUERIES["uploads"] == for_one_hour(f"sum({objects})")
    durations = f'bronze_upload_duration_seconds{{{data}, bronze_outcome="success"}}'
    assert glance.QUERIES["upload_p95_s"] == for_one_hour(promql.quantile_counted(0.95, durations))
    assert Thresholds().duration_s_max == DURATION_S_MAX


def test_each_write_is_shown_once_and_the_slowest_first() -> None:
    """Prometheus stores an exemplar once per export, and for each histogram bucket in its own series."""

    def exemplar(source: str, trace_id: str, value: float, at_s: float) -> Exemplar:
        return Exemplar({"bronze_source": source, "le": "5"}, value, trace_id, "b7", at_s)

    found = [
        exemplar("vehicles", "a" * 32, 0.09, 10),
        exemplar("vehicles", "a" * 32, 0.09, 20),
        exemplar("status", "b" * 32, 2.5, 15),
    ]
    assert [(write.source, write.duration_s, write.trace_id[0]) for write in slowest(found)] == [
        ("status", 2.5, "b"),
        ("vehicles", 0.09, "a"),
    ]


def test_the_undeclared_fields_of_a_source_are_the_most_frequent_and_a_number() -> None:
    def field(source: str, name: str, count: float) -> Sample:
        return Sample({"bronze_source": source, "bronze_field": name}, count)

    found = [field("b", "_OTHER", 9), field("b", "x", 1), *(field("a", f"f{count}", count) for count in range(1, 7))]
    assert undeclared(found) == {"a": UndeclaredFields(("f6", "f5", "f4"), 3), "b": UndeclaredFields(("x",), 1)}


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def connected(client: httpx.AsyncClient) -> Callable[[], Awaitable[Prometheus]]:
    async def connect() -> Prometheus:
        return Prometheus(client)

    return connect


@asynccontextmanager
async def reader_at(port: int) -> AsyncIterator[GlanceReader]:
    async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port}", trust_env=False) as client:
        yield GlanceReader(connected(client))


async def test_a_prometheus_that_never_answers_times_out_once_for_all_requests() -> None:
    """Ten concurrent requests wait for one shared time-out, not for one after the other."""
    start = time.monotonic()
    with silent() as port:
        async with reader_at(port) as reader:
            results = await asyncio.gather(*(reader.read() for _ in range(10)), return_exceptions=True)
    assert [str(error) for error in results if isinstance(error, Unavailable)] == [
        "Prometheus does not answer within 2 s"
    ] * 10
    one_after_the_other_s = 10 * ASK_S_MAX
    assert time.monotonic() - start < min(limit_s(2 * ASK_S_MAX), one_after_the_other_s)


async def test_a_refused_connection_is_unavailable() -> None:
    with silent() as port:
        pass
    async with reader_at(port) as reader:
        with pytest.raises(Unavailable, match=r"Prometheus does not answer: .*connect"):
            await reader.read()


async def test_another_server_in_place_of_prometheus_is_reported() -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_server(hello, LOOPBACK, 0)
    async with server, reader_at(server.sockets[0].getsockname()[1]) as glances:
        with pytest.raises(Unavailable, match=r"the server that answers at .* is not Prometheus"):
            await glances.read()


async def test_verdicts_and_alerts_are_read_by_name() -> None:
    """The worst of a part if there are several; nothing of a series without its name."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("query_exemplars"):
            return httpx.Response(200, json={"data": []})
        found = {
            glance.VERDICTS[0]: [({"part": "queue"}, "222"), ({"part": "queue"}, "0"), ({}, "201")],
            glance.SOURCE_VERDICTS[0]: [({"bronze_source": "vehicles"}, "0")],
            glance.FOUND: [
                ({"bronze_source": "vehicles", "bronze_field": "seats", "bronze_expectation": "max"}, "149")
            ],
            glance.BROKEN: [({"bronze_source": "vehicles", "bronze_expectation": "every"}, "1")],
            glance.ALERTS[0]: [({"alertname": "BronzeRoleDown"}, "1"), ({"alertname": "BronzeLaneHalted"}, "1")],
        }.get(request.url.params["query"], [])
        series = [{"metric": metric, "value": [0, value]} for metric, value in found]
        return httpx.Response(200, json={"data": {"result": series}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://prometheus") as client:
        found = await GlanceReader(connected(client)).read()
    assert (found.verdicts, found.source_verdicts) == ({"queue": 222}, {"vehicles": 0})
    assert found.alerts == ["BronzeLaneHalted", "BronzeRoleDown"]
    assert found.found == {("vehicles", "seats", "max"): 149}
    assert found.broken == {("vehicles", "", "every")}


@pytest.mark.parametrize("reported", ["+Inf", "-Inf", "NaN", "1e300", "-1e300"])
async def test_a_number_that_nobody_can_have_measured_does_not_break_the_page(reported: str) -> None:
    """Whoever can send telemetry can send any number; the page shows the others."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("query_exemplars"):
            labels = {"trace_id": "0" * 31 + "1"}
            exemplars = [
                {"labels": labels, "value": reported, "timestamp": 1.0},
                {"labels": labels, "value": "1", "timestamp": float(reported.replace("NaN", "1e300")) * 1e3},
            ]
            series = [{"seriesLabels": {"bronze_source": "vehicles"}, "exemplars": exemplars}]
            # not JSON by its standard, but what Python's parser accepts from a server
            return httpx.Response(200, content=json.dumps({"data": series}).encode())
        return httpx.Response(200, json={"data": {"result": [{"metric": {}, "value": [0, reported]}]}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://prometheus") as client:
        found = await GlanceReader(connected(client)).read()
    for tile in tiles(found):
        assert tile.value
    for write in found.slowest:
        assert format_duration(write.duration_s)
