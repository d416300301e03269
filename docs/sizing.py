"""The capacity model: what a load needs, what it costs, and which limit it reaches first: `python -m docs.sizing`.

Without options, it writes the tables of docs/sizing.md. With options, it prints them for one load. It is arithmetic
from costs that were measured, which it reads from the tables of docs/performance.md.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

from benchmarks.sample import RECORDS
from bronze.settings import Settings

PAGE = Path(__file__).resolve().parent / "sizing.md"
MEASURED = PAGE.parent / "performance.md"
WRITE = "python -m docs.sizing"
_MARKED = re.compile(r"(<!-- sizing: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

DAY_S, MONTH_DAYS, HOUR_S = 86_400, 30, 3600
GB, MB = 1e9, 1e6
#: The records of the measurements, in bytes.
SAMPLE_RECORD_BYTES = 239
BULK_RECORDS = 10 * RECORDS
#: The share of a core that a process is planned to use, so that a peak and the loss of a process find room.
UTILIZATION = 0.7
IDENTITY_S = DAY_S  # of submissions without an `Idempotency-Key`; with one, 30 days
#: Per source, for a load that no number of lanes can take.
LANES_MAX = 1_000
APIS_MAX = 39  # docs/kubernetes.md: 40 open batches per stream
#: What was not measured: an estimate, and its reason.
LEADER_CORES = 1.0  # a stream is written by one server, one batch after another
QUEUE_SERVER_MEMORY_BYTES = 200 * MB  # without identities
OTHER_PROCESSES_CORES = 1.0  # collector, Prometheus, Tempo, Grafana, canary at rest
OTHER_PROCESSES_BYTES = 4 * GB
#: An operator waits for that: an API without a kept index, a server of the queue that starts.
START_S_MAX = 600.0


# --- what was measured


class Costs:
    """The costs, from the tables of docs/performance.md. Raises `KeyError` for what they do not have."""

    def __init__(self, page: str) -> None:
        self._page = page

    def figure(self, part: str, figure: str, variant: str) -> float:
        """A figure of a variant, in whichever of the tables of a part it is."""
        marked = re.search(rf"<!-- bench: {part} -->\n(.*?)<!-- end -->", self._page, re.DOTALL)
        for table in (marked[1] if marked else "").split("\n\n"):
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
            found = _cell(rows, figure, variant) or _cell(
                [list(row) for row in zip(*rows, strict=False)], figure, variant
            )
            if found:
                return float(found.replace(",", ""))
        raise KeyError(f"{MEASURED.name}, {part}: {figure!r} of {variant!r}")

    # CPU seconds of a submission, of a record and of an object

    def submission_cpu_s(self, role: str) -> float:
        return self.figure("small", f"CPU {role}, ms", "100 %") / 1000

    def record_cpu_s(self, role: str) -> float:
        """What is left of a bulk load in submissions of 10,000 records without its submissions."""
        submission = self.submission_cpu_s({"api": "endpoint"}.get(role, role)) / 10_000
        return self.figure("bulk", f"CPU {role}, s", "service 10k") / BULK_RECORDS - submission

    def object_cpu_s(self, role: str) -> float:
        """What is left of an object of one submission without that."""
        return self.figure("growth", f"CPU {role}, ms", "young lane") / 1000 - self.submission_cpu_s(role)

    @cached_property
    def object_sizes(self) -> Sequence[tuple[float, float]]:
        """Records of an object, and its bytes per record."""
        names = ("1", "10", "100", "1,000", "10,000", "100,000", "300,000")
        return [
            (
                self.figure("objects", "records", f"{n} records"),
                self.figure("objects", "bytes per record", f"{n} records"),
            )
            for n in names
        ]

    @cached_property
    def queue_sizes(self) -> Sequence[tuple[float, float]]:
        """Records of a submission, and bytes per record in the queue."""
        return [
            (float(n.replace(",", "")), self.figure("objects", "queue bytes per record", f"{of} records"))
            for n, of in (("1", "1"), ("10", "100"), ("100", "1,000"), ("1,000", "100,000"))
        ]

    def index_per_object_and_submission(self, figure: str) -> tuple[float, float]:
        """What an object and what a submission take in the catalog index, by two indexes of different catalogs."""
        measured = [
            [self.figure("view", name, variant) for name in ("objects", "submissions", figure)]
            for variant in self.indexes
            if self._has("view", figure, variant)
        ]
        (objects, submissions, taken), (others, of_others, by_others) = measured[0], measured[-1]
        each = (taken * others - by_others * objects) / (submissions * others - of_others * objects)
        return (taken - each * submissions) / objects, each

    @cached_property
    def indexes(self) -> Sequence[str]:
        """The catalogs of which an index was measured. The first one has the most submissions per object."""
        found = re.search(r"<!-- bench: view -->.*?\n\|  \| (.*?) \|\n", self._page, re.DOTALL)
        return found[1].split(" | ") if found else []

    def _has(self, part: str, figure: str, variant: str) -> bool:
        with suppress(KeyError):
            self.figure(part, figure, variant)
            return True
        return False


def _cell(rows: Sequence[Sequence[str]], figure: str, variant: str) -> str | None:
    """The cell in the row of a figure and the column of a variant, if there is one."""
    if not rows or variant not in rows[0][1:]:
        return None
    column = rows[0].index(variant)
    return next((row[column] for row in rows if row[0] == figure and len(row) > column and row[column]), None)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at a place between two that were measured, along the logarithm; beyond them, as the nearest."""
    place = math.log(max(at, points[0][0]))
    for (low, first), (high, second) in pairwise(points):
        if place <= math.log(high):
            return first + (second - first) * (place - math.log(low)) / (math.log(high) - math.log(low))
    return points[-1][1]


# --- what a load needs


@dataclass(frozen=True)
class Load:
    """An even load. Prices are in USD: list prices of AWS, us-east-1, on demand, of early 2025."""

    records_per_s: float = 1_000
    record_bytes: float = SAMPLE_RECORD_BYTES  # as NDJSON
    records_per_submission: float = 1_000
    sources: float = 4
    lanes: float = 0  # per source; 0: as many as it needs
    flush_age_s: float = 15
    retention_days: float = 30  # of objects and their catalog entries
    queries_per_s: float = 1  # look-ups
    reads_per_object: float = 2
    outage_h: float = 1  # of the bucket, which the queue has to bridge
    queue_servers: float = 3
    queue_memory_gb: float = 16  # of each server of the queue
    core_hour_price: float = 0.0504  # with 4 GB of memory
    disk_gb_month_price: float = 0.08
    bucket_gb_month_price: float = 0.023
    thousand_puts_price: float = 0.005
    thousand_gets_price: float = 0.0004

    @property
    def submissions_per_s(self) -> float:
        return self.records_per_s / self.records_per_submission


@dataclass(frozen=True)
class Limit:
    """What the system takes at most: `needed` of `most`. `basis`: where `most` is from. `remedy`: what then helps."""

    name: str
    needed: float
    most: float
    unit: str
    basis: str
    remedy: str

    @property
    def share(self) -> float:
        return self.needed / self.most


@cache
def _settings() -> Settings:
    """Those of the environment. To read them takes 6 ms, and a page asks a thousand times."""
    return Settings()


@dataclass(frozen=True)
class Plan:
    """What a load needs, by measured costs."""

    load: Load
    costs: Costs

    # objects

    @cached_property
    def lanes(self) -> float:
        """Per source: as many as keep each below what one process can write."""
        lanes = self.load.lanes or 1
        while not self.load.lanes and lanes < LANES_MAX and self._lane_cores(lanes) > UTILIZATION:
            lanes += 1
        return lanes

    def _lane_cores(self, lanes: float) -> float:
        objects = self.load.records_per_s / self._records_per_object(lanes) * self.costs.object_cpu_s("consumer")
        return (self._cores_without_objects("consumer") + objects) / self.load.sources / lanes

    def _records_per_object(self, lanes: float) -> float:
        """An object is full, or old enough; it has the submission that begins it."""
        load, settings = self.load, _settings()
        lane_rate = load.records_per_s / load.sources / lanes
        return min(
            load.records_per_submission + lane_rate * load.flush_age_s,
            max(settings.object_bytes_max / load.record_bytes, 1),
            settings.object_submissions_max * load.records_per_submission,
        )

    @property
    def records_per_object(self) -> float:
        return self._records_per_object(self.lanes)

    @property
    def objects_per_s(self) -> float:
        return self.load.records_per_s / self.records_per_object

    @property
    def object_bytes_per_record(self) -> float:
        """In proportion to the size of the records that were measured."""
        return between(self.costs.object_sizes, self.records_per_object) * self.load.record_bytes / SAMPLE_RECORD_BYTES

    @property
    def bucket_bytes_per_day(self) -> float:
        return self.load.records_per_s * DAY_S * self.object_bytes_per_record

    # the catalog and its index

    @property
    def entries(self) -> float:
        return self.objects_per_s * DAY_S * self.load.retention_days

    @property
    def submissions_kept(self) -> float:
        return self.load.submissions_per_s * DAY_S * self.load.retention_days

    @property
    def submissions_per_object(self) -> float:
        return max(1.0, self.records_per_object / self.load.records_per_submission)

    def _in_index(self, figure: str) -> float:
        per_object, per_submission = self.costs.index_per_object_and_submission(figure)
        return per_object * self.entries + per_submission * self.submissions_kept

    @property
    def index_bytes(self) -> float:
        return self._in_index("GB") * GB

    @property
    def index_build_s(self) -> float:
        return self._in_index("CPU build, s")

    @property
    def index_cores(self) -> float:
        """Of each API, to follow the catalog."""
        per_object, per_submission = self.costs.index_per_object_and_submission("CPU build, s")
        return per_object * self.objects_per_s + per_submission * self.load.submissions_per_s

    # the queue

    @property
    def queue_bytes_per_s(self) -> float:
        each = between(self.costs.queue_sizes, self.load.records_per_submission)
        return self.load.records_per_s * each * self.load.record_bytes / SAMPLE_RECORD_BYTES

    @property
    def lane_queue_bytes(self) -> float:
        """What waits in a lane at the end of the outage."""
        return self.queue_bytes_per_s / self.load.sources / self.lanes * self.load.outage_h * HOUR_S

    @property
    def identities(self) -> float:
        return self.load.submissions_per_s * IDENTITY_S

    def _of_identities(self, figure: str) -> float:
        return self.identities * self.costs.figure("identities", figure, "300,000 identities")

    @property
    def queue_disk_bytes(self) -> float:
        """Of each server: lanes at the end of the outage, identities, and the entries of the catalog."""
        lanes = self.lane_queue_bytes * self.lanes * self.load.sources
        per_object, per_submission = self._entry_bytes
        entries = per_object * self.entries + per_submission * self.submissions_kept
        return lanes + self._of_identities("disk, bytes per identity") + entries

    @property
    def _entry_bytes(self) -> tuple[float, float]:
        """The bytes of an entry without submissions, and those of each submission in it."""
        of_figure = self.costs.figure
        many, few = self.costs.indexes[0], self.costs.indexes[-1]
        of_many, of_few = (
            of_figure("view", "submissions", of) / of_figure("view", "objects", of) for of in (many, few)
        )
        bytes_of_many, bytes_of_few = (of_figure("view", "kB of the entry", of) * 1000 for of in (many, few))
        each = (bytes_of_many - bytes_of_few) / (of_many - of_few)
        return bytes_of_few - each * of_few, each

    @property
    def queue_memory_bytes(self) -> float:
        return QUEUE_SERVER_MEMORY_BYTES + self._of_identities("memory, bytes per identity")

    @property
    def queue_start_s(self) -> float:
        return self.identities * self.costs.figure("identities", "start, s", "300,000 identities") / 300_000

    @property
    def queue_messages_per_s(self) -> float:
        """A message of each submission, or several if it is large; its identity, and an entry per object."""
        messages = max(1.0, self.load.records_per_submission * self.load.record_bytes / 2**20)
        return self.load.submissions_per_s * (messages + 1) + self.objects_per_s

    # cores

    def _cores_without_objects(self, role: str) -> float:
        load, costs = self.load, self.costs
        submission = costs.submission_cpu_s({"api": "endpoint"}.get(role, role))
        # what a record costs is nearly all per byte
        record = costs.record_cpu_s(role) * load.record_bytes / SAMPLE_RECORD_BYTES
        return load.submissions_per_s * submission + load.records_per_s * record

    @property
    def api_cores(self) -> float:
        """A query is counted as a small submission."""
        queries = self.load.queries_per_s * self.costs.submission_cpu_s("endpoint")
        return self._cores_without_objects("api") + queries

    @property
    def consumer_cores(self) -> float:
        return self._cores_without_objects("consumer") + self.objects_per_s * self.costs.object_cpu_s("consumer")

    @property
    def queue_cores(self) -> float:
        return self._cores_without_objects("nats") + self.objects_per_s * self.costs.object_cpu_s("nats")

    @property
    def catalog_leader_cores(self) -> float:
        """Of the server that leads the catalog's stream; the half of what an object costs the queue is its entry."""
        identity = self.costs.figure("identities", "CPU nats, us per identity", "300,000 identities") / 1e6
        return self.load.submissions_per_s * identity + self.objects_per_s * self.costs.object_cpu_s("nats") / 2

    @property
    def apis(self) -> int:
        """Processes, at least two, so that one can end. Each follows the catalog as well, if it can."""
        return max(2, math.ceil(self.api_cores / max(UTILIZATION - self.index_cores, UTILIZATION / 2)))

    @property
    def consumers(self) -> int:
        return max(2, math.ceil(self.consumer_cores / UTILIZATION))

    @property
    def cores(self) -> float:
        """Of the whole system; of the servers of the queue, each does what one does alone."""
        queue = max(1.0, self.queue_cores / UTILIZATION) * self.load.queue_servers
        return self.apis + self.consumers + queue + OTHER_PROCESSES_CORES

    @property
    def memory_bytes(self) -> float:
        api = self.costs.figure("memory", "peak api, MB", "ten million") * MB
        consumer = self.costs.figure("memory", "peak consumer, MB", "ten million") * MB
        index = self.costs.figure("view", "memory after look-ups, MB", self.costs.indexes[-1]) * MB
        queue = self.queue_memory_bytes * self.load.queue_servers
        return self.apis * (api + index) + self.consumers * consumer + queue + OTHER_PROCESSES_BYTES

    # requests and money

    @property
    def puts_per_day(self) -> float:
        return self.objects_per_s * DAY_S

    @property
    def gets_per_day(self) -> float:
        """Of readers, two per object (footer and rows); and of queries, which ask for the size of an object."""
        return self.puts_per_day * self.load.reads_per_object * 2 + self.load.queries_per_s * DAY_S

    @property
    def money(self) -> Mapping[str, float]:
        """USD per month, when as much is deleted as is written."""
        load, hours = self.load, MONTH_DAYS * 24
        disk = self.queue_disk_bytes * load.queue_servers + self.index_bytes * self.apis
        paid_for_memory = max(self.cores, self.memory_bytes / (4 * GB))
        return {
            "cores and memory": paid_for_memory * hours * load.core_hour_price,
            "disk": disk / GB * load.disk_gb_month_price,
            "bucket": self.bucket_bytes_per_day * load.retention_days / GB * load.bucket_gb_month_price,
            "PUT": self.puts_per_day * MONTH_DAYS / 1000 * load.thousand_puts_price,
            "GET": self.gets_per_day * MONTH_DAYS / 1000 * load.thousand_gets_price,
        }

    # limits

    @property
    def limits(self) -> Sequence[Limit]:
        """What may break, the first one first."""
        settings, lanes = _settings(), self.lanes * self.load.sources
        found = [
            Limit(
                "memory of a queue server",
                *(self.queue_memory_bytes / GB, self.load.queue_memory_gb, "GB"),
                "identities: measured with 300,000, extrapolated",
                "more records per submission; servers with more memory",
            ),
            Limit(
                "start of a queue server",
                *(self.queue_start_s, START_S_MAX, "s"),
                "measured with 300,000 identities, extrapolated",
                "more records per submission",
            ),
            Limit(
                "leader of the catalog's stream",
                *(self.catalog_leader_cores, LEADER_CORES, "cores"),
                "CPU measured; one core per leader is an estimate",
                "more records per submission; a longer flush age",
            ),
            Limit(
                "a lane: one process writes it",
                *(self.consumer_cores / lanes, 1.0, "cores"),
                "measured",
                "more lanes (`bronze lanes N`)",
            ),
            Limit(
                "leader of a lane's stream",
                *(self._cores_without_objects("nats") / lanes, LEADER_CORES, "cores"),
                "CPU measured; one core per leader is an estimate",
                "more lanes",
            ),
            Limit(
                "API processes",
                *(self.apis, APIS_MAX, ""),
                "40 open batches per stream, by the server",
                "more records per submission",
            ),
            Limit(
                "start of an API without a kept index",
                *(self.index_build_s, START_S_MAX, "s"),
                "measured with up to 100,000,000 submissions, extrapolated",
                "keep it (`BRONZE_VIEW_DIR`); a shorter retention; a longer flush age",
            ),
            Limit(
                "following the catalog, in each API process",
                *(self.index_cores, UTILIZATION / 2, "cores"),
                "CPU measured; half of what a process is planned to use",
                "more records per submission; a longer flush age",
            ),
            Limit(
                "disk of an API's index",
                *(self.index_bytes / GB, 10.0, "GB"),
                "measured, extrapolated; `api.index.size` of the chart",
                "a larger `api.index.size`; a shorter retention",
            ),
            Limit(
                "queue while the bucket is away",
                *(self.lane_queue_bytes / GB, settings.queue_bytes_max / GB, "GB per lane"),
                "measured; `BRONZE_QUEUE_BYTES_MAX`",
                "a larger `BRONZE_QUEUE_BYTES_MAX`",
            ),
        ]
        return sorted(found, key=lambda limit: limit.share, reverse=True)


# --- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: float) -> str:
    """Three significant digits, which is more than the model knows."""
    if abs(value) < 1_000 and value == int(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    rounded = round(value, 2 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{min(digits, 3)}f}"


def needs(plans: Sequence[Plan]) -> Mapping[str, Sequence[str]]:
    """By name, a value of each plan."""
    values: Mapping[str, Sequence[float]] = {
        "submissions/s": [plan.load.submissions_per_s for plan in plans],
        "lanes per source": [plan.lanes for plan in plans],
        "API: cores": [plan.api_cores for plan in plans],
        "API: processes": [plan.apis for plan in plans],
        "consumer: cores": [plan.consumer_cores for plan in plans],
        "consumer: processes": [plan.consumers for plan in plans],
        "NATS: cores of each server": [plan.queue_cores for plan in plans],
        "NATS: messages/s": [plan.queue_messages_per_s for plan in plans],
        "NATS: MB/s": [plan.queue_bytes_per_s / MB for plan in plans],
        "NATS: memory of each server, GB": [plan.queue_memory_bytes / GB for plan in plans],
        "NATS: disk of each server, GB": [plan.queue_disk_bytes / GB for plan in plans],
        "all cores": [plan.cores for plan in plans],
        "all memory, GB": [plan.memory_bytes / GB for plan in plans],
        "objects and catalog entries per day": [plan.puts_per_day for plan in plans],
        "kB per object": [plan.records_per_object * plan.object_bytes_per_record / 1000 for plan in plans],
        "bucket, GB per day": [plan.bucket_bytes_per_day / GB for plan in plans],
        "S3: PUT per day": [plan.puts_per_day for plan in plans],
        "S3: GET and HEAD per day": [plan.gets_per_day for plan in plans],
        "index: objects": [plan.entries for plan in plans],
        "index: submissions": [plan.submissions_kept for plan in plans],
        "index: GB, of each API": [plan.index_bytes / GB for plan in plans],
        "index: minutes to build": [plan.index_build_s / 60 for plan in plans],
        **{f"USD per month: {name}": [plan.money[name] for plan in plans] for name in plans[0].money},
        "USD per month": [sum(plan.money.values()) for plan in plans],
    }
    return {name: [shown(value) for value in of_plans] for name, of_plans in values.items()}


def first_limits(plan: Plan) -> str:
    """What the load is above of, the first one first; or the nearest one."""
    above = [limit for limit in plan.limits if limit.share > 1]
    nearest = plan.limits[0]
    return "<br>".join(f"{limit.name} ({shown(limit.share)} times)" for limit in above) or (
        f"none; nearest: {nearest.name} ({nearest.share:.0%})"
    )


def ladder(plans: Sequence[Plan]) -> str:
    """Loads beside each other."""
    rows = [[name, *values] for name, values in needs(plans).items()]
    rows.append(["**limits that are reached**", *map(first_limits, plans)])
    return table(["records/s", *(shown(plan.load.records_per_s) for plan in plans)], rows)


def limits(plan: Plan) -> str:
    """Each limit of a load, and at which rate it would be reached."""
    return table(
        ["limit", "needed", "most", "reached at, records/s", "from", "remedy"],
        [
            [
                limit.name,
                f"{shown(limit.needed)} {limit.unit}".strip(),
                f"{shown(limit.most)} {limit.unit}".strip(),
                shown(plan.load.records_per_s / limit.share) if limit.share else "",
                limit.basis,
                limit.remedy,
            ]
            for limit in plan.limits
        ],
    )


def costs_table(costs: Costs) -> str:
    """The costs, with the tables that they are from."""
    roles = (("API", "api", "endpoint"), ("consumer", "consumer", "consumer"), ("NATS", "nats", "nats"))
    rows = []
    for name, role, small in roles:
        rows.append(
            [f"{name}: CPU of a submission", f"{costs.submission_cpu_s(small) * 1e6:,.0f} us", "*small*, 100 %"]
        )
        rows.append([f"{name}: CPU of a record", f"{costs.record_cpu_s(role) * 1e6:.2f} us", "*bulk*, service 10k"])
        if role != "api":
            rows.append(
                [f"{name}: CPU of an object", f"{costs.object_cpu_s(role) * 1e3:.1f} ms", "*growth*, young lane"]
            )
    for figure, unit in (("memory, bytes per identity", "bytes"), ("disk, bytes per identity", "bytes")):
        value = costs.figure("identities", figure, "300,000 identities")
        rows.append([f"NATS: {figure.partition(',')[0]} of an identity", f"{value:,.0f} {unit}", "*identities*"])
    for figure, name, factor, unit in (("GB", "disk", 1e9, "bytes"), ("CPU build, s", "CPU", 1e6, "us")):
        per_object, per_submission = costs.index_per_object_and_submission(figure)
        rows.append([f"index: {name} of an object", f"{per_object * factor:,.0f} {unit}", "*view*"])
        rows.append([f"index: {name} of a submission", f"{per_submission * factor:,.0f} {unit}", "*view*"])
    return table(["cost", "value", "table of performance.md"], rows)


LADDER = (1_000, 10_000, 100_000, 1_000_000)


def tables(measured: str) -> Mapping[str, str]:
    """By the names of their places."""
    costs = Costs(measured)
    large = [Plan(Load(records_per_s=rate), costs) for rate in LADDER]
    small = [Plan(Load(records_per_s=rate, records_per_submission=10), costs) for rate in LADDER]
    return {
        "costs": costs_table(costs),
        "large": ladder(large),
        "limits": limits(large[-1]),
        "small": ladder(small),
        "options": table(
            ["option", "default"],
            [[f"`--{name.replace('_', '-')}`", f"{value:g}"] for name, value in vars(Load()).items()],
        ),
    }


def page(text: str) -> str:
    """The page with the present tables."""
    places = tables(MEASURED.read_text(encoding="utf-8"))
    return _MARKED.sub(lambda mark: f"{mark[1]}{places[mark[2]]}{mark[3]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=WRITE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=Load.__doc__
    )
    for field in fields(Load):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, help=f"default: {field.default:g}")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if not given:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    plan = Plan(Load(**given), Costs(MEASURED.read_text(encoding="utf-8")))
    sys.stdout.write(f"{ladder([plan])}\n{limits(plan)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
