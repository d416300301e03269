"""The canary: each of its checks fails by a fault of its own, and only that check does."""

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.canary.api import By, Lineage, LineageSubmission, ObjectLink, SubmissionStatus
from bronze.canary.api_checks import AcceptedCheck, LineageCheck
from bronze.canary.bucket_checks import ObjectCheck, OnceCheck
from bronze.canary.checks import Accepted, CanaryCheck, Run
from bronze.canary.exemplar_share import ExemplarShare
from bronze.canary.run import RECORDS, Canary, new_run
from bronze.canary.telemetry_checks import ExemplarCheck, LedgerCheck, TraceCheck
from bronze.errors import Outage, Refusal, Refused, Unavailable
from bronze.objects.encoder import encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records.sources import CANARY, load
from bronze.servers.prometheus import Exemplar
from bronze.servers.trace_store import Span
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Check, Outcome, Role, VerifyCheck, attribute, spans
from bronze.verify.results import CheckResult, Fault, Period
from tests import factories
from tests.contract.making import Heard
from tests.delivery.servers import ModelBucket, Object

LANE = Lane(CANARY, 0, "20261124T120000000")
TIME = "2026-11-24T12:34:56.123456789Z"
BEGAN_S = 1795523696.0  # at TIME
NEEDS = {
    check.name: check.needs
    for check in (AcceptedCheck, ObjectCheck, OnceCheck, LedgerCheck, TraceCheck, ExemplarCheck, LineageCheck)
}


class System:
    """A system in memory that stores what is sent, at once. Its attributes are what a test breaks."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.accepted: dict[str, tuple[Accepted, str]] = {}
        self.refuses: Exception | None = None
        self.retries = True  # under one key there is one submission
        self.on_stored: Callable[[str], None] = lambda key: None
        self.stored = self.counted = 0.0
        self.miscounted = 0.0
        self.lost_span: str | None = None
        self.exemplar_of: Callable[[str], str] = str
        self.not_found_by: By | None = None

    # --- the API

    async def send(self, key: str, lines: Sequence[bytes]) -> Accepted:
        if self.refuses:
            raise self.refuses
        if key in self.accepted and self.retries:
            return self.accepted[key][0]
        number = len(self.accepted) + 1
        trace_id = f"{number:032x}"
        made = Accepted(f"s{number}", trace_id)
        accepted = factories.accepted(
            submission_id=made.submission_id,
            source=CANARY,
            records=len(lines),
            trace_id=trace_id,
            traceparent=f"00-{trace_id}-{number:016x}-01",
            classification_id=key,
        )
        headers = Part(accepted, 1, 1, 0, len(lines)).headers()
        message = Message(
            number, lane_subject(CANARY, 0, made.submission_id), TIME, headers, b"[" + b",".join(lines) + b"]"
        )
        file_path = object_key("bronze", LANE, message)
        parent = accepted.traceparent
        encoded = encode_object(load(None)[CANARY], LANE, file_path, reconcile(LANE, [message], {}), parent)
        self.objects[file_path] = Object(encoded.body, {})
        self.accepted[key if key not in self.accepted else f"{key} again"] = made, file_path
        self.stored += len(lines)
        self.counted = len(lines) + self.miscounted
        self.on_stored(file_path)
        return made

    async def status(self, submission_id: str) -> SubmissionStatus:
        paths = [path for accepted, path in self.accepted.values() if accepted.submission_id == submission_id]
        return SubmissionStatus("stored", [ObjectLink(path) for path in paths])

    async def lineage(self, by: By, value: str) -> Lineage:
        if by == self.not_found_by:
            raise Refused(Refusal.NOT_FOUND, "nothing")
        for key, (accepted, path) in self.accepted.items():
            if value in {key, accepted.submission_id, accepted.trace_id, path}:
                return Lineage([LineageSubmission(accepted.submission_id)], [ObjectLink(path)])
        raise Refused(Refusal.NOT_FOUND, "nothing")

    # --- Prometheus

    async def value(self, query: str) -> float | None:
        if "bronze_queue_depth" in query:
            return 0
        return self.stored if "bronze_ledger_records" in query else self.counted

    async def exemplars(self, _selector: str, start_s: float, _end_s: float) -> Sequence[Exemplar]:
        return [
            Exemplar({}, 0.1, self.exemplar_of(accepted.trace_id), "", start_s)
            for accepted, _ in self.accepted.values()
        ]

    # --- the trace store

    name = "a model"

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        path = next((path for accepted, path in self.accepted.values() if accepted.trace_id == trace_id), None)
        if path is None:
            return None
        way = (
            (Role.CANARY, spans.publish),
            (Role.API, spans.ingest),
            (Role.API, spans.send),
            (Role.CONSUMER, spans.process),
            (Role.CONSUMER, spans.upload),
            (Role.CONSUMER, spans.put),
        )
        return [
            Span(
                # as Zipkin has them
                signal.name(CANARY).lower(),
                str(number),
                str(number - 1) if number else None,
                role,
                {attribute.bronze_file_path: path} if signal is spans.upload else {},
                0,
                0,
            )
            for number, (role, signal) in enumerate(way)
            if signal.name(CANARY) != self.lost_span
        ]


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.CANARY)
    yield heard
    heard.telemetry.shutdown()


def checks_of(system: System) -> list[CanaryCheck]:
    soon: dict[str, Any] = {"arrived_s_max": 0}
    model: Any = system
    bucket = ModelBucket(system.objects)
    return [
        AcceptedCheck(model),
        ObjectCheck(model, bucket, 0),
        OnceCheck(model, bucket, "bronze"),
        LedgerCheck(model, settled_s=0, arrived_s_max=3),
        TraceCheck(model, **soon),
        ExemplarCheck(model, model, **soon),
        LineageCheck(model, found_s_max=0),
    ]


@pytest.fixture
def canary(system: System, heard: Heard) -> Canary:
    return Canary(checks_of(system), heard.telemetry.instruments, 60)


def a_run() -> Run:
    return new_run(lambda: BEGAN_S)


def skipped_without(failed: Check) -> set[Check]:
    """The checks that need a check, directly or through others."""
    skipped: set[Check] = set()
    for name, needs in NEEDS.items():
        if needs & {failed, *skipped}:
            skipped.add(name)
    return skipped


async def test_every_check_of_a_healthy_system_succeeds(canary: Canary, heard: Heard) -> None:
    """Run after run; each is counted and timed, and the time of the last is reported."""
    for _ in range(3):
        outcomes = await canary.run_once(a_run())
        assert outcomes == dict.fromkeys(Check, Outcome.SUCCESS)
    assert heard.count("bronze.canary.checks", bronze_outcome="success") == 3 * len(Check)
    assert heard.count("bronze.canary.check.duration") == 3 * len(Check)
    (last_run,) = heard.points("bronze.canary.last_run.time")
    assert last_run.value > BEGAN_S


def altered(system: System) -> None:
    """One character of a payload."""

    def alter(key: str) -> None:
        table = pq.read_table(BytesIO(system.objects[key].body))
        place = table.schema.get_field_index("_payload")
        payloads = [payload.replace('"number":0', '"number":9') for payload in table["_payload"].to_pylist()]
        changed, body = table.set_column(place, "_payload", pa.array(payloads)), BytesIO()
        pq.write_table(changed, body)
        system.objects[key] = replace(system.objects[key], body=body.getvalue())

    system.on_stored = alter


def moved(system: System) -> None:
    """Its rows say another key."""

    def move(key: str) -> None:
        path = key.replace("-0-", "-1-")
        system.objects[path] = system.objects.pop(key)
        system.accepted = {of: (accepted, path) for of, (accepted, _) in system.accepted.items()}

    system.on_stored = move


def copied(system: System) -> None:
    system.on_stored = lambda key: system.objects.update({key.replace(".parquet", "-1.parquet"): system.objects[key]})


def unreachable(system: System) -> None:
    system.refuses = Unavailable(Outage.UNAVAILABLE, "the API does not answer")


def refused(system: System) -> None:
    system.refuses = Refused(Refusal.UNKNOWN_SOURCE, "There is no source 'canary'.")


def deleted(system: System) -> None:
    system.on_stored = system.objects.pop  # type: ignore[assignment]


def not_a_parquet_file(system: System) -> None:
    system.on_stored = lambda key: system.objects.update({key: Object(b"PAR1", {})})


def forgotten(system: System) -> None:
    """A retry under the same key is another submission."""
    system.retries = False


def miscounted(system: System) -> None:
    system.miscounted = -1


def stored_elsewhere(system: System) -> None:
    """The ledger has one record more."""
    system.on_stored = lambda _: setattr(system, "stored", system.stored + 1)


def lost_end(system: System) -> None:
    system.lost_span = spans.put.name()


def lost_parent(system: System) -> None:
    system.lost_span = spans.send.name(CANARY)


def no_exemplar(system: System) -> None:
    system.exemplar_of = lambda _: "f" * 32


def unknown_to(by: By) -> Callable[[System], None]:
    return lambda system: setattr(system, "not_found_by", by)


FAULTS: Sequence[tuple[Callable[[System], None], Check, str]] = (
    (unreachable, Check.ACCEPTED, "unavailable"),
    (refused, Check.ACCEPTED, "unknown-source"),
    (altered, Check.OBJECT, "mismatch"),
    (moved, Check.OBJECT, "mismatch"),
    (deleted, Check.OBJECT, "mismatch"),
    (not_a_parquet_file, Check.OBJECT, "mismatch"),
    (copied, Check.ONCE, "mismatch"),
    (forgotten, Check.ONCE, "mismatch"),
    (miscounted, Check.LEDGER, "mismatch"),
    (stored_elsewhere, Check.LEDGER, "mismatch"),
    (lost_end, Check.TRACE, "mismatch"),
    (lost_parent, Check.TRACE, "mismatch"),
    (no_exemplar, Check.EXEMPLAR, "mismatch"),
    *((unknown_to(by), Check.LINEAGE, "mismatch") for by in get_args(By)),
)


@pytest.mark.parametrize(("fault", "failing", "reason"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
async def test_a_fault_makes_its_own_check_fail_and_only_it(
    canary: Canary, system: System, heard: Heard, fault: Callable[[System], None], failing: Check, reason: str
) -> None:
    """The checks that need it are skipped, and the others succeed."""
    fault(system)
    outcomes = await canary.run_once(a_run())
    skipped = skipped_without(failing)
    assert outcomes == {
        name: Outcome.FAILURE if name == failing else Outcome.SKIPPED if name in skipped else Outcome.SUCCESS
        for name in Check
    }
    assert heard.count("bronze.canary.checks", bronze_check=failing, error_type=reason) == 1
    assert heard.count("bronze.canary.checks", bronze_outcome="failure") == 1
    states = {
        (point.attributes[attribute.bronze_check], point.attributes[attribute.bronze_outcome])
        for point in heard.points("bronze.canary.check.state")
        if point.value
    }
    assert states == set(outcomes.items())


async def test_a_fault_that_is_over_is_forgotten(canary: Canary, system: System) -> None:
    altered(system)
    await canary.run_once(a_run())
    system.on_stored = lambda key: None
    assert await canary.run_once(a_run()) == dict.fromkeys(Check, Outcome.SUCCESS)


async def test_a_submission_that_is_stored_again_after_its_run_is_found_in_the_next(
    canary: Canary, system: System
) -> None:
    """As it happens if a retry is stored again, at the next flush."""
    await canary.run_once(a_run())
    (earlier,) = system.objects
    copied_later = {earlier.replace("-0-", "-1-"): system.objects[earlier]}
    system.on_stored = lambda _: system.objects.update(copied_later)
    outcomes = await canary.run_once(a_run())
    assert {name for name, outcome in outcomes.items() if outcome is Outcome.FAILURE} == {Check.ONCE}


async def test_a_server_that_does_not_answer_before_the_run_fails_its_check(canary: Canary, system: System) -> None:
    async def unavailable(query: str) -> float | None:
        raise Unavailable(Outage.UNAVAILABLE, "Prometheus does not answer")

    system.value = unavailable  # type: ignore[method-assign]
    outcomes = await canary.run_once(a_run())
    assert {name for name, outcome in outcomes.items() if outcome is not Outcome.SUCCESS} == {Check.LEDGER}


async def test_a_defect_of_a_check_is_a_failure(canary: Canary, system: System, heard: Heard) -> None:
    async def broken(by: By, value: str) -> Lineage:
        raise KeyError(value)

    system.lineage = broken  # type: ignore[method-assign]
    outcomes = await canary.run_once(a_run())
    assert outcomes[Check.LINEAGE] is Outcome.FAILURE
    assert heard.count("bronze.canary.checks", bronze_check="lineage", error_type="internal") == 1


async def test_a_stop_ends_a_run(canary: Canary, system: System, heard: Heard) -> None:
    """A run that was not completed is not reported as one."""
    stop, sending = asyncio.Event(), asyncio.Event()

    async def waits(key: str, lines: Sequence[bytes]) -> Accepted:
        sending.set()
        await asyncio.Event().wait()
        raise AssertionError

    system.send = waits  # type: ignore[method-assign]
    running = asyncio.create_task(canary.run(stop))
    await asyncio.wait_for(sending.wait(), 10)
    stop.set()
    await asyncio.wait_for(running, 10)
    assert not heard.points("bronze.canary.last_run.time")


async def test_the_share_of_exemplars_is_reported(heard: Heard) -> None:
    """Of a minute whose telemetry has settled; each fault is logged."""
    now, periods = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC), []

    class OneInFour:
        async def exemplars(self, period: Period) -> CheckResult:
            periods.append(period)
            return CheckResult(VerifyCheck.EXEMPLAR, 4, faults=[Fault("trace not found", "", trace_id="t")])

    verification: Any = OneInFour()
    await ExemplarShare(lambda: nullcontext(verification), heard.telemetry.instruments).report(verification, now)
    (share,) = heard.points("bronze.verify.share")
    assert share.value == 0.75
    assert periods == [Period(now - dt.timedelta(minutes=2), now - dt.timedelta(minutes=1))]


def test_the_records_are_of_the_source() -> None:
    """Each has another number, and all have the classification of their run."""
    run = a_run()
    assert len(set(run.lines)) == RECORDS
    assert all(run.key.encode() in line for line in run.lines)


def test_the_registry_has_each_check() -> None:
    assert list(registry().attributes[attribute.bronze_check].members) == [*Check]
