"""The canary on the real system: all its checks succeed, and each of them fails by a fault of its own, and only it."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.canary.api import By, Lineage
from bronze.canary.api_checks import LineageCheck
from bronze.canary.bucket_checks import ObjectCheck, OnceCheck
from bronze.canary.checks import CanaryCheck, Run
from bronze.canary.run import RECORDS, Canary, new_run
from bronze.canary.telemetry_checks import ExemplarCheck, LedgerCheck, TraceCheck
from bronze.servers.trace_store import Span, TraceStore
from bronze.settings import Settings
from bronze.telemetry import Telemetry, losses, sdk
from bronze.telemetry.signals import Check, Outcome, Role
from bronze.wiring.canary import open_canary_checks
from local import servers
from local.builds import Built
from local.machine import limit_s
from local.programs import Process, environment
from tests.contract import making
from tests.pipeline.whole import stack
from tests.system.blackbox import SOON, System, until

#: Longer than the consumer's interval of reports, and than its exports with `SOON`.
SETTLED_S = 7.0
LEDGER = 'max(bronze_ledger_records{job="bronze/consumer", bronze_source="canary", bronze_outcome="stored"})'
#: How long a check waits for what a fault has made impossible.
IN_VAIN_S = 3.0


@dataclass(frozen=True)
class Live:
    """A system that runs, with the canary's checks on it."""

    system: System
    processes: dict[str, Process]
    checks: Sequence[CanaryCheck]
    telemetry: Telemetry
    runner: asyncio.Runner

    def run(self, run: Run | None = None) -> dict[Check, Outcome]:
        canary = Canary(self.checks, self.telemetry.instruments, 60)
        return self.runner.run(canary.run_once(run or new_run()))

    def check(self, kind: type[Any]) -> Any:
        return next(check for check in self.checks if isinstance(check, kind))

    @contextmanager
    def consumer(self, **env: str) -> Iterator[None]:
        """In the context, the consumer has other settings."""
        self.processes["consumer"].stop()
        with self.system.running(self.system.role("consumer", **env)):
            yield
        self.processes["consumer"].restart()


@pytest.fixture(scope="module")
def live(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    whole = stack(tmp_path_factory.mktemp("canary"), built)
    system = System(whole, SOON)
    with (
        pytest.MonkeyPatch.context() as environment,
        asyncio.Runner() as runner,
        system.running(*whole.servers),
        system.running(system.role("api"), system.role("consumer")) as processes,
    ):
        for name, value in system.role("canary").env.items():
            environment.setenv(name, value)
        traces = f"{os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/traces"
        telemetry = sdk.assemble(
            sdk._resource(Role.CANARY), span_exporters=[lambda meters: losses.CountedSpans(meters, traces)]
        )
        opened = open_canary_checks(Settings(), telemetry, threading.Event())
        checks = runner.run(opened.__aenter__())
        live = Live(system, processes, checks, telemetry, runner)
        live.check(LedgerCheck)._settled_s = SETTLED_S
        try:
            yield live
        finally:
            runner.run(opened.__aexit__(None, None, None))
            telemetry.shutdown()


def only(failing: Check, *skipped: Check) -> dict[Check, Outcome]:
    """The outcomes if one check fails."""
    others = {failing: Outcome.FAILURE, **dict.fromkeys(skipped, Outcome.SKIPPED)}
    return {name: others.get(name, Outcome.SUCCESS) for name in Check}


def test_every_check_succeeds(live: Live) -> None:
    """Also in the next run, and while other data is sent."""
    for _ in range(2):
        assert live.run() == dict.fromkeys(Check, Outcome.SUCCESS)


def test_a_rebuilt_catalog_continues_the_ledger(live: Live) -> None:
    """By the records of the next run, also for a canary that has just started: a rebuild changes no total."""
    every = dict.fromkeys(Check, Outcome.SUCCESS)
    assert live.run() == every
    rebuilt = subprocess.run(
        [servers.executable("bronze"), "catalog", "rebuild", "--yes"],
        env={**environment(), **live.system.role("consumer").env, **live.system.stack.queue_env("admin")},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert rebuilt.returncode == 0, rebuilt.stderr
    for name in ("consumer", "api"):  # they end when they find that the catalog was replaced
        live.processes[name].restart()
    assert live.run() == every
    live.check(LedgerCheck)._after = None
    assert live.run() == every


def test_the_api_refuses(live: Live) -> None:
    run = new_run()
    run.lines = (b'{"run_id": 1}',)
    assert live.run(run) == only(
        Check.ACCEPTED, Check.OBJECT, Check.ONCE, Check.LEDGER, Check.TRACE, Check.EXEMPLAR, Check.LINEAGE
    )


def test_an_object_was_altered(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """One character of one payload, in the bucket itself, right after it was stored."""
    check = live.check(ObjectCheck)
    stored = check._stored

    async def alter(submission_id: str) -> str:
        key: str = await stored(submission_id)
        table = pq.read_table(BytesIO(live.system.body(key)))
        payloads = [payload.replace('"number":0', '"number":9') for payload in table["_payload"].to_pylist()]
        body = BytesIO()
        pq.write_table(table.set_column(table.schema.get_field_index("_payload"), "_payload", pa.array(payloads)), body)
        live.system.s3.put_object(Bucket=live.system.bucket, Key=key, Body=body.getvalue())
        return key

    monkeypatch.setattr(check, "_stored", alter)
    assert live.run() == only(Check.OBJECT, Check.ONCE, Check.LEDGER, Check.TRACE, Check.EXEMPLAR, Check.LINEAGE)


def test_an_object_was_copied(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """By someone else, to a key beside it."""
    check, copies = live.check(OnceCheck), []
    listed = check._list

    async def copy() -> set[str]:
        keys: set[str] = await listed()
        if check._known and (added := keys - check._known):
            key = max(added)
            copies.append(key.replace(".parquet", "-copy.parquet"))
            source = {"Bucket": live.system.bucket, "Key": key}
            live.system.s3.copy_object(Bucket=live.system.bucket, Key=copies[0], CopySource=source)
            return {*keys, *copies}
        return keys

    monkeypatch.setattr(check, "_list", copy)
    try:
        assert live.run() == only(Check.ONCE, Check.LEDGER)
    finally:
        live.system.s3.delete_object(Bucket=live.system.bucket, Key=copies[0])


def test_something_else_sends_to_the_source(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledger and counters grow by more than the canary sent."""
    check = live.check(LedgerCheck)
    checked = check.check

    async def disturb(run: Run) -> None:
        accepted = live.system.post("canary", new_run().lines[0])
        live.system.stored(accepted.json()["submission_id"])
        await making.until(grown, 30)
        await checked(run)

    async def grown() -> bool:
        return bool(await check._prometheus.value(LEDGER) == check._before + RECORDS + 1)

    monkeypatch.setattr(check, "check", disturb)
    monkeypatch.setattr(check, "_arrived_s_max", IN_VAIN_S)
    assert live.run() == only(Check.LEDGER)


class Lossy:
    """A trace store that lacks the spans of the queue."""

    def __init__(self, store: TraceStore) -> None:
        self.name = store.name
        self._store = store

    async def trace(self, trace_id: str) -> Sequence[Span] | None:
        return [span for span in await self._store.trace(trace_id) or () if span.name != "send bronze.canary"]


def test_a_span_was_lost(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    check = live.check(TraceCheck)
    monkeypatch.setattr(check, "_store", Lossy(check._store))
    monkeypatch.setattr(check, "_arrived_s_max", IN_VAIN_S)
    assert live.run() == only(Check.TRACE, Check.EXEMPLAR)


def test_the_consumer_records_no_exemplars(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.check(ExemplarCheck), "_arrived_s_max", IN_VAIN_S)
    with live.consumer(OTEL_METRICS_EXEMPLAR_FILTER="always_off"):
        assert live.run() == only(Check.EXEMPLAR)


def test_an_id_is_not_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API answers 404 for the classification of another run."""
    check = live.check(LineageCheck)
    lineage: Callable[[By, str], Any] = check._api.lineage

    async def look(by: By, value: str) -> Lineage:
        found: Lineage = await lineage(by, "canary-of-another-run" if by == "classification_id" else value)
        return found

    monkeypatch.setattr(check._api, "lineage", look)
    monkeypatch.setattr(check, "_found_s_max", IN_VAIN_S)
    assert live.run() == only(Check.LINEAGE)


def test_the_role_reports_its_runs_and_stops_at_once(live: Live) -> None:
    """The process `bronze canary` itself: its metrics arrive, and SIGTERM ends it with exit code 0."""
    system = live.system
    program = system.role("canary", BRONZE_CANARY_INTERVAL_S="1")
    with system.running(program) as processes:
        last_run = 'bronze_canary_last_run_time_seconds{job="bronze/canary"}'
        until("a run is reported", lambda: system.value(last_run), 90)
        state = 'sum(bronze_canary_check_state{job="bronze/canary", bronze_outcome="success"})'
        until("all checks succeed", lambda: system.value(state) == len(Check), 60)
        processes["canary"].signal(signal.SIGTERM)
        assert processes["canary"].wait(10) == 0
