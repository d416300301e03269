"""A week of data, with incidents from a seed: what the data monitors report of it, and when the rules find each
incident.

Each two minutes of a source are an object: its rows are written and measured by the code of the consumer, and its
monitors report them. The clock is simulated, and nothing is sent. Promtool evaluates the rules over what was reported.
"""

import math
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bronze.consumer.monitors import Monitors
from bronze.objects.encoder import Encoded
from bronze.objects.file_writer import FileWriter
from bronze.objects.measurements import Measurements
from bronze.records import sources
from bronze.records.sources import Source
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import OTHER_FIELD
from local.builds import Built
from prometheus import data
from prometheus.data import Problem
from prometheus.rules import FOLDER
from tests import factories

MINUTES, DAY = 7 * 24 * 60, 24 * 60
#: An incident has to be found within two windows of the rules.
FOUND_MIN = 2 * data.WINDOW_S // 60
INCIDENT_MIN = 30
#: Objects are reported, and the rules evaluated, each two minutes: the rules half as often as in operation.
STEP_MIN = 2
#: Rows of which the objects are slices.
POOL = 10_000

DECLARED = """
[{name}]
description = "d"
fields = [
    {{ name = "delay_min", type = "float64", description = "Null in 30 %." }},
    {{ name = "seats", type = "int64", description = "Null in 5 %." }},
]
"""


@dataclass(frozen=True)
class Sender:
    """What sends to a source: records per minute on average, which the time of day changes by up to `rhythm`."""

    name: str
    per_minute: float
    rhythm: float
    peak_hour: float
    incidents: bool = False
    #: all records of so many minutes come at once
    burst_min: int = 1


SENDERS = (
    Sender("incidents_a", 150, 0.6, 14, incidents=True),
    Sender("incidents_b", 80, 0.5, 9, incidents=True),
    Sender("incidents_c", 200, 0.7, 20, incidents=True),
    Sender("incidents_d", 100, 0.3, 2, incidents=True),
    Sender("quiet_a", 150, 0.6, 13),
    Sender("quiet_b", 60, 0.7, 10),
    Sender("quiet_slow", 0.2, 0.5, 12),
    Sender("quiet_hourly", 100, 0.5, 12, burst_min=60),
)

Change = Callable[[pa.RecordBatch], pa.RecordBatch]


def _no_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(0, 0)


def _half(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(0, batch.num_rows // 2)


def _null_column(batch: pa.RecordBatch) -> pa.RecordBatch:
    field = batch.schema.field("seats")
    return batch.set_column(1, field, pa.nulls(batch.num_rows, field.type))


def _as_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


NEW_FIELD, NEW_TYPE = "a new field", "a type that changed"
#: Records of a submission that is refused, of which the API reads one.
SUBMISSION_RECORDS = 10
#: The kinds of incidents: what becomes of the rows of an object, and the problems by which it is found. What the API
#: sees of it, and not the consumer, is in `_of_api`.
KINDS: Mapping[str, tuple[Change, Sequence[Problem]]] = {
    "silence": (_no_rows, (Problem.SILENT, Problem.VOLUME)),
    "half of the records": (_half, (Problem.VOLUME,)),
    "a column is null": (_null_column, (Problem.NULLS,)),
    NEW_FIELD: (_as_is, (Problem.UNDECLARED,)),
    NEW_TYPE: (_half, (Problem.REJECTED,)),  # of one of two senders, so its submissions are refused
}


@dataclass(frozen=True)
class Incident:
    """It begins before the object that is reported in minute `begin`, and ends after `INCIDENT_MIN`."""

    kind: str
    source: str
    begin: int

    @property
    def minutes(self) -> range:
        return range(self.begin, self.begin + INCIDENT_MIN)


def incidents(seed: int, count: int) -> list[Incident]:
    """So many, from the second day on: the kinds in turn, with at least two hours between those of a source."""
    choice = random.Random(f"incidents {seed}")
    names = [sender.name for sender in SENDERS if sender.incidents]
    each = count // len(names)
    found = []
    for offset, name in enumerate(names):
        length = (MINUTES - DAY - 180) // each
        for number in range(each):
            begin = DAY + number * length + choice.randrange(length - INCIDENT_MIN - 120)
            begin -= begin % STEP_MIN
            found.append(Incident(list(KINDS)[(number + offset) % len(KINDS)], name, begin))
    return found


# --- what is reported of a week


def week(seed: int, planned: Sequence[Incident]) -> dict[str, list[str]]:
    """The values of each series, `STEP_MIN` apart; `_` is no value."""
    with ProcessPoolExecutor() as pool:
        parts = pool.map(_of_sender, SENDERS, [seed] * len(SENDERS), [planned] * len(SENDERS))
    return {series: values for part in parts for series, values in part.items()}


def _of_sender(sender: Sender, seed: int, planned: Sequence[Incident]) -> dict[str, list[str]]:
    source = sources.parse(DECLARED.format(name=sender.name), "week")[sender.name]
    reader = InMemoryMetricReader()
    monitors = Monitors({source.name: source}, Instruments.create(MeterProvider([reader]).get_meter("week")))
    kinds = {minute: of for of in planned if of.source == sender.name for minute in of.minutes}
    rows = _pool(source, random.Random(f"pool {sender.name} {seed}"))
    accepted, newest_s = 0, 0
    rejected, undeclared = 0, {OTHER_FIELD: 0}
    series: dict[str, list[str]] = {}
    for step, count in enumerate(_counts(sender, seed)):
        minute = step * STEP_MIN
        batch = rows.slice((minute * 37) % POOL, count)
        if incident := kinds.get(minute):
            batch = KINDS[incident.kind][0](batch)
            if incident.kind == NEW_TYPE:
                rejected += (count - batch.num_rows) // SUBMISSION_RECORDS
            if incident.kind == NEW_FIELD:
                name = f"new_{incident.begin}"
                undeclared[name] = undeclared.get(name, 0) + count // SUBMISSION_RECORDS
        if batch.num_rows:
            accepted, newest_s = accepted + batch.num_rows, minute * 60 - 5
            monitors.add(_stored(source, batch))
        monitors.report()
        samples = [*_samples(source.name, reader, accepted, newest_s), *_of_api(source.name, rejected, undeclared)]
        for name, value in samples:
            series.setdefault(name, ["_"] * step).append(f"{value:g}" if value < 1e6 else f"{value:.0f}")
    return series


def _counts(sender: Sender, seed: int) -> Iterator[int]:
    """Records per object: the rhythm of the day, other levels of each day and hour, and noise."""
    choice = random.Random(f"{sender.name} {seed}")
    slow, waiting, arrived = 0.0, 0, 0
    for minute in range(MINUTES):
        if minute % DAY == 0:
            of_day = choice.gauss(1, 0.05)
        slow = 0.98 * slow + choice.gauss(0, 0.015)
        phase = 2 * math.pi * (minute / 60 - sender.peak_hour) / 24
        mean = max(0.0, sender.per_minute * of_day * (1 + sender.rhythm * math.cos(phase)) * math.exp(slow))
        mean *= choice.lognormvariate(0, 0.1)
        waiting += sum(choice.random() < mean / 20 for _ in range(20)) if mean < 1 else _poisson(choice, mean)
        if minute % sender.burst_min == 0:
            arrived, waiting = arrived + waiting, 0
        if minute % STEP_MIN == 0:
            yield arrived
            arrived = 0


def _poisson(choice: random.Random, mean: float) -> int:
    return max(0, round(choice.gauss(mean, math.sqrt(mean))))


def _pool(source: Source, choice: random.Random) -> pa.RecordBatch:
    rows = range(2 * POOL)
    return pa.record_batch(
        [
            pa.array([None if choice.random() < 0.3 else choice.gauss(10, 30) for _ in rows]),
            pa.array([None if choice.random() < 0.05 else choice.randrange(400) for _ in rows]),
        ],
        names=[field.name for field in source.fields],
    )


def _stored(source: Source, batch: pa.RecordBatch) -> Encoded:
    """The object with these rows, as the encoder makes it, without the columns that Bronze adds."""
    writer, measurements = FileWriter(batch.schema), Measurements(source, batch.schema)
    writer.add(batch)
    measurements.add(batch)
    body, metadata = writer.finish({})
    return Encoded(body, factories.contents(1, 1, source=source.name), measurements.finish(metadata, body))


def _of_api(source: str, rejected: int, undeclared: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    api = f'job="bronze/api", bronze_source="{source}"'
    yield f'bronze_records_total{{{api}, bronze_outcome="rejected", error_type="schema-violation"}}', rejected
    for name, count in undeclared.items():
        yield f'bronze_fields_undeclared_total{{{api}, bronze_field="{name}"}}', count


def _samples(source: str, reader: InMemoryMetricReader, accepted: int, newest_s: float) -> Iterator[tuple[str, float]]:
    """What Prometheus has of an object: the metrics of the monitors, and those of ledger and lane."""
    consumer = f'job="bronze/consumer", bronze_source="{source}"'
    yield f'bronze_ledger_records{{job="bronze/api", bronze_source="{source}", bronze_outcome="accepted"}}', accepted
    yield f'data_staleness_last_update_timestamp_seconds{{{consumer}, bronze_lane="0"}}', newest_s
    yield f'bronze_queue_depth{{{consumer}, bronze_lane="0"}}', 0
    reported = reader.get_metrics_data()
    for metric in (
        m for r in (reported.resource_metrics if reported else ()) for s in r.scope_metrics for m in s.metrics
    ):
        if metric.name == "bronze.field.values":
            for point in metric.data.data_points:
                labels = ", ".join(
                    f'{key.replace(".", "_")}="{value!s}"' for key, value in (point.attributes or {}).items()
                )
                yield f'bronze_field_values_total{{job="bronze/consumer", {labels}}}', point.value  # type: ignore[union-attr]


# --- what the rules find


@dataclass(frozen=True)
class Found:
    """The minutes from the begin of each incident until the verdict names a problem of its kind, None if it does not.

    Of the sources without incidents, by problem or alert and source: for how many minutes of the week their verdict was
    wrong, and for how many an alert fired.
    """

    after_min: Mapping[Incident, float | None]
    wrong_min: Mapping[tuple[str, ...], float]
    fired_min: Mapping[tuple[str, ...], float]

    def in_time(self, kind: str | None = None) -> tuple[int, int]:
        """How many incidents were found in time, and of how many."""
        of_kind = [after for incident, after in self.after_min.items() if kind in {None, incident.kind}]
        return sum(after is not None and after <= FOUND_MIN for after in of_kind), len(of_kind)

    def table(self) -> str:
        """As Markdown."""
        lines = ["| incident | found in time | median | slowest |", "|---|---|---|---|"]
        for kind in KINDS:
            found, of = self.in_time(kind)
            times = sorted(after for at, after in self.after_min.items() if at.kind == kind and after is not None)
            lines.append(f"| {kind} | {found} of {of} | {times[len(times) // 2]:g} min | {times[-1]:g} min |")
        return "\n".join(lines)


_RESULT = re.compile(r'expr: "(?P<expr>.*?)", time: (?P<time>\S+),\s+exp: nil\s+got: (?P<got>.*)')
_SAMPLE = re.compile(r"(\{.*?\}) (\S+?)(?:, |$)")


def found(built: Built, folder: Path, seed: int, count: int = 100) -> Found:
    """Replays a week with so many incidents, and returns what the rules find."""
    planned = incidents(seed, count)
    series = week(seed, planned)
    tests = [
        {"expr": _first_seen(incident), "eval_time": f"{incident.minutes.stop}m", "exp_samples": []}
        for incident in planned
    ]
    quiet = f'bronze_source!~"{"|".join(sender.name for sender in SENDERS if sender.incidents)}"'
    wrong = f"sum by (problem, bronze_source) (count_over_time({data.PROBLEM}{{{quiet}}}[7d]))"
    fired = f'sum by (alertname, bronze_source) (count_over_time(ALERTS{{{quiet}, alertstate="firing"}}[7d]))'
    tests += [{"expr": expr, "eval_time": f"{MINUTES}m", "exp_samples": []} for expr in (wrong, fired)]
    case = {
        "rule_files": [str(FOLDER / "data.yaml")],
        "evaluation_interval": f"{STEP_MIN}m",
        "tests": [
            {
                "interval": f"{STEP_MIN}m",
                "input_series": [{"series": name, "values": " ".join(values)} for name, values in series.items()],
                "promql_expr_test": tests,
            }
        ],
    }
    file = folder / "week.yaml"
    file.write_text(yaml.dump(case, Dumper=yaml.CSafeDumper, width=2**30))
    # promtool says what it got of each query that has another result than none
    outcome = subprocess.run([built.promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    results = {
        match["expr"].replace('\\"', '"'): _SAMPLE.findall(match["got"])
        for match in _RESULT.finditer(outcome.stdout + outcome.stderr)
    }
    assert results, outcome.stdout[-2000:] + outcome.stderr[-2000:]
    after_min: dict[Incident, float | None] = dict.fromkeys(planned)
    for incident in planned:
        for _, value in results.get(_first_seen(incident), ()):
            # its first object has the rows of so many minutes
            after_min[incident] = float(value) / 60 - incident.begin + STEP_MIN - 1
    return Found(after_min, *(_minutes(results.get(expr, [])) for expr in (wrong, fired)))


def _minutes(samples: Sequence[tuple[str, str]]) -> dict[tuple[str, ...], float]:
    """The minutes of so many evaluations, by the values of the labels, in the order of their names."""
    return {tuple(re.findall(r'"(\w+)"', labels)): float(value) * STEP_MIN for labels, value in samples}


def _first_seen(incident: Incident) -> str:
    """When a problem of the incident's kind was first seen, in seconds. Each incident has an expression of its own."""
    problems = "|".join(problem.label for problem in KINDS[incident.kind][1])
    seen = f'timestamp({data.PROBLEM}{{bronze_source="{incident.source}", problem=~"{problems}"}})'
    window = f"[{INCIDENT_MIN}m:{STEP_MIN}m]"
    return f"min(min_over_time({seen}{window} @ {incident.minutes.stop * 60}))"
