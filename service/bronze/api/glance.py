"""The overview and the slowest Bronze writes, from Prometheus: for the page, which works without Grafana.

Queries read the series that came by OTLP (`job="bronze/..."`), as rules and dashboards do. An exemplar of the upload
latency carries the trace of that upload; the lineage of the trace contains the object.
"""

import asyncio
import datetime as dt
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bronze.errors import Outage, Unavailable
from bronze.records.expectations import Expectation
from bronze.telemetry.promql import (
    LEDGER,
    NO_CANARY,
    added,
    counted,
    histogram_series,
    in_ledger,
    missing,
    newest,
    quantile_counted,
)
from bronze.telemetry.signals import OTHER_FIELD

if TYPE_CHECKING:
    from bronze.servers.prometheus import Exemplar, Prometheus, Sample

WINDOW_S = 3600
#: The time limit of all queries together, in seconds.
ASK_S_MAX = 2.0
#: The time for which an answer is used again, so that the load of Prometheus does not grow with the number of users.
FRESH_S = 2.0
SLOWEST_MAX = 10
#: How many undeclared fields of a source are named.
NAMED_MAX = 3

_RANGE = "1h"
_CONSUMER = f'job="bronze/consumer", {NO_CANARY}'
_LANE = "bronze_source, bronze_lane"
_UPLOADS = f'bronze_upload_duration_seconds{{{_CONSUMER}, bronze_outcome="success"}}'


def _ledger(outcome: str) -> str:
    return "sum(" + in_ledger(f'bronze_ledger_records{{{LEDGER}, {NO_CANARY}, bronze_outcome="{outcome}"}}') + ")"


#: The queries, by the field of `Glance` that they fill.
QUERIES: Mapping[str, str] = {
    "uploads": f"sum({added(f'bronze_ledger_objects{{{LEDGER}, {NO_CANARY}}}', _RANGE)})",
    "failures": counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="failure"}}', _RANGE),
    "upload_p95_s": quantile_counted(0.95, _UPLOADS, _RANGE),
    "delivery_p95_s": quantile_counted(0.95, f"bronze_delivery_duration_seconds{{{_CONSUMER}}}", _RANGE),
    "delivery_objective_s": f"max(bronze_delivery_objective_seconds{{{_CONSUMER}}})",
    # exact, from the catalog, since the first record
    "stored": _ledger("stored"),
    "quarantined": f"{_ledger('quarantined')} + {_ledger('rejected')}",
    "missing": missing(_CONSUMER),
    "queue_depth": f"sum({newest(f'bronze_queue_depth{{{_CONSUMER}}}', _LANE)})",
    "queue_oldest_age_s": f"max({newest(f'bronze_queue_oldest_age_seconds{{{_CONSUMER}}}', _LANE)})",
}
#: Which fields that are not declared the records of each source have.
UNDECLARED = "0 < " + counted(
    f'bronze_fields_undeclared_total{{job="bronze/api", {NO_CANARY}}}', _RANGE, "bronze_source, bronze_field"
)
_FIELD = "bronze_source, bronze_field"


def _compared_with(expectation: Expectation, expr: str) -> str:
    return f'label_replace(\n{expr},\n"bronze_expectation", "{expectation}", "", "")'


def _null_share() -> str:
    """The window is that of the rules."""
    counted_values = f"bronze_field_values_total{{{_CONSUMER}}}[15m]"
    null = counted_values.replace("}", ', bronze_value="null"}', 1)
    return f"sum by ({_FIELD}) (increase({null})) / (sum by ({_FIELD}) (increase({counted_values})) > 0)"


#: What the monitors found last of each source and field, by the expectation with which it is compared.
FOUND = "\nor ".join(
    (
        _compared_with(
            Expectation.EVERY,
            f"time() - max by (bronze_source) (data_staleness_last_update_timestamp_seconds{{{_CONSUMER}}})",
        ),
        _compared_with(
            Expectation.RECORDS_PER_HOUR_MIN,
            added(f'bronze_ledger_records{{{LEDGER}, {NO_CANARY}, bronze_outcome="accepted"}}', "1h"),
        ),
        _compared_with(Expectation.NULL_SHARE_MAX, _null_share()),
        _compared_with(Expectation.MIN, f"min by ({_FIELD}) (bronze_field_min{{{_CONSUMER}}})"),
        _compared_with(Expectation.MAX, f"max by ({_FIELD}) (bronze_field_max{{{_CONSUMER}}})"),
        _compared_with(Expectation.DISTINCT_MAX, f"max by ({_FIELD}) (bronze_field_distinct{{{_CONSUMER}}})"),
    )
)
#: Each expectation that is not met.
BROKEN = f"bronze:expectation_broken{{{NO_CANARY}}}"
EXEMPLARS = histogram_series(_UPLOADS, "bucket")
#: The verdicts, each as a number, with the label that names what they are on.
VERDICTS = ("bronze:verdict", "part")
SOURCE_VERDICTS = (f"bronze:source_verdict{{{NO_CANARY}}}", "bronze_source")
ALERTS = ('ALERTS{alertname=~"Bronze.+", alertstate="firing"}', "alertname")


@dataclass(frozen=True)
class BronzeWrite:
    """A Bronze write for which Prometheus has an exemplar."""

    duration_s: float
    source: str
    at: dt.datetime
    trace_id: str


@dataclass(frozen=True)
class UndeclaredFields:
    """The names of fields that a source does not declare, the most frequent first; `more` are not named."""

    names: tuple[str, ...]
    more: int


#: A source, its field or "" of the source itself, and an expectation.
ExpectationKey = tuple[str, str, str]


@dataclass(frozen=True)
class Glance:
    """The uploads of the last hour, and the current state of bucket and queue. None: not reported."""

    uploads: float | None
    failures: float | None
    upload_p95_s: float | None
    delivery_p95_s: float | None
    delivery_objective_s: float | None
    stored: float | None
    quarantined: float | None
    missing: float | None
    queue_depth: float | None
    queue_oldest_age_s: float | None
    #: in descending order of duration
    slowest: tuple[BronzeWrite, ...]
    #: the number of the verdict on each part, and on each source
    verdicts: Mapping[str, float] = field(default_factory=dict)
    source_verdicts: Mapping[str, float] = field(default_factory=dict)
    #: the names of the alerts that fire
    alerts: Sequence[str] = ()
    #: by source, of those that have any
    undeclared: Mapping[str, UndeclaredFields] = field(default_factory=dict)
    #: what was found last, and what is not met
    found: Mapping[ExpectationKey, float] = field(default_factory=dict)
    broken: AbstractSet[ExpectationKey] = frozenset()


class GlanceReader:
    """Reads the overview from Prometheus, for which `connect` is awaited. Concurrent requests share one answer."""

    def __init__(
        self, connect: "Callable[[], Awaitable[Prometheus]]", monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._monotonic_s = monotonic_s
        self._lock = asyncio.Lock()
        self._answer: Glance | Unavailable = Unavailable(Outage.UNAVAILABLE, "Prometheus was not asked yet")
        self._answered_s = -math.inf

    async def read(self) -> Glance:
        """The overview, at most `FRESH_S` old, within `ASK_S_MAX`. Raises `Unavailable`."""
        async with self._lock:
            if self._monotonic_s() - self._answered_s > FRESH_S:
                try:
                    self._answer = await self._query_all(time.time())
                except Unavailable as error:
                    self._answer = error
                self._answered_s = self._monotonic_s()
        if isinstance(self._answer, Unavailable):
            raise Unavailable(self._answer.code, self._answer.detail)
        return self._answer

    async def _query_all(self, now_s: float) -> Glance:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                prometheus = await self._connect()
                exemplars, fields, values, by_label, (found, broken) = await asyncio.gather(
                    prometheus.exemplars(EXEMPLARS, now_s - WINDOW_S, now_s + 1),
                    prometheus.vector(UNDECLARED, now_s),
                    asyncio.gather(*(prometheus.value(query, now_s) for query in QUERIES.values())),
                    asyncio.gather(
                        *(_by_label(prometheus, *query, now_s) for query in (VERDICTS, SOURCE_VERDICTS, ALERTS))
                    ),
                    asyncio.gather(*(_by_expectation(prometheus, query, now_s) for query in (FOUND, BROKEN))),
                )
        except TimeoutError as error:
            raise Unavailable(Outage.TIMEOUT, f"Prometheus does not answer within {ASK_S_MAX:g} s") from error
        verdicts, source_verdicts, alerts = by_label
        return Glance(
            **dict(zip(QUERIES, values, strict=True)),
            slowest=slowest(exemplars),
            verdicts=verdicts,
            source_verdicts=source_verdicts,
            alerts=sorted(alerts),
            undeclared=undeclared(fields),
            found=found,
            broken=broken.keys(),
        )


async def _by_label(prometheus: "Prometheus", query: str, label: str, now_s: float) -> dict[str, float]:
    """The values of a query by a label of its series; the greatest of several."""
    found: dict[str, float] = {}
    for sample in await prometheus.vector(query, now_s):
        if (name := sample.labels.get(label)) and math.isfinite(sample.value):
            found[name] = max(sample.value, found.get(name, sample.value))
    return found


async def _by_expectation(prometheus: "Prometheus", query: str, now_s: float) -> dict[ExpectationKey, float]:
    def key(labels: Mapping[str, str]) -> ExpectationKey:
        source, name, expectation = (labels.get(f"bronze_{part}", "") for part in ("source", "field", "expectation"))
        return source, name, expectation

    samples = await prometheus.vector(query, now_s)
    return {key(sample.labels): sample.value for sample in samples if math.isfinite(sample.value)}


def undeclared(fields: "Sequence[Sample]") -> Mapping[str, UndeclaredFields]:
    """The undeclared fields of each source, of which only some are named."""
    by_source: dict[str, list[str]] = {}
    for sample in sorted(fields, key=lambda sample: (-sample.value, sample.labels.get("bronze_field", ""))):
        by_source.setdefault(sample.labels.get("bronze_source", ""), []).append(sample.labels.get("bronze_field", ""))
    found = {}
    for source, names in by_source.items():
        named = tuple(name for name in names if name != OTHER_FIELD)[:NAMED_MAX]
        found[source] = UndeclaredFields(named, len(names) - len(named))
    return found


def slowest(exemplars: "Sequence[Exemplar]") -> tuple[BronzeWrite, ...]:
    """The slowest writes among exemplars, each once. One trace may contain several writes."""
    writes = {
        (exemplar.trace_id, exemplar.value): BronzeWrite(
            exemplar.value,
            exemplar.labels.get("bronze_source", ""),
            dt.datetime.fromtimestamp(exemplar.at_s, dt.UTC),
            exemplar.trace_id,
        )
        for exemplar in exemplars
    }
    return tuple(sorted(writes.values(), key=lambda write: write.duration_s, reverse=True)[:SLOWEST_MAX])
