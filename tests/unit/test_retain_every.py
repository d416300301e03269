"""`bronze retain --every`: run after run, until a stop signal."""

import asyncio
import datetime as dt
import time

import pytest

from bronze.__main__ import parser
from bronze.admin.command_error import CommandError
from bronze.admin.retain_command import RETRY, run_every
from bronze.admin.retain_telemetry import RetainTelemetry
from bronze.admin.retention import Deleted
from bronze.errors import Halted, Misconfigured, NotPermitted, Outage, Unavailable
from bronze.settings import Settings
from bronze.telemetry.signals import Role
from bronze.wiring.retention import run_retain
from tests.contract.making import Heard

SOON = dt.timedelta(milliseconds=1)


class Runs:
    """Runs with these outcomes; each one after them lasts until it is cancelled."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = [*outcomes]
        self.hangs = asyncio.Event()
        self.was_cancelled = False

    async def once(self) -> int:
        if self._outcomes:
            if error := self._outcomes.pop(0):
                raise error
            return 0
        self.hangs.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return 0


async def test_a_run_that_fails_is_followed_by_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(Unavailable(Outage.QUEUE_AWAY, "the queue"), None, CommandError("no catalog"), Halted("a mark"))
    stop = asyncio.Event()
    running = asyncio.create_task(run_every(SOON, runs.once, stop))
    await runs.hangs.wait()
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "the queue",
        "no catalog",
        "a mark",
    ]
    stop.set()
    assert await running == 0
    await asyncio.sleep(0)
    assert runs.was_cancelled


async def test_a_run_that_fails_is_repeated_before_the_next_one_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    stop, ended = asyncio.Event(), asyncio.Event()
    once = Runs(Unavailable(Outage.QUEUE_AWAY, "the queue")).once
    running = asyncio.create_task(run_every(dt.timedelta(days=1), once, stop, lambda _: ended.set()))
    await ended.wait()
    stop.set()
    assert await running == 0
    assert f"the next run is in {RETRY}: the queue" in capsys.readouterr().err


async def test_each_run_is_counted_with_its_error_and_its_time() -> None:
    """Also one that ends the role."""
    heard = Heard(Role.RETAIN)
    heard.telemetry.export_zeros(["vehicles"])
    telemetry = RetainTelemetry(heard.telemetry.instruments, SOON)
    assert {point.value for point in heard.points("bronze.retention.interval")} == {SOON.total_seconds()}
    assert {point.value for point in heard.points("bronze.retention.runs")} == {0}
    assert not heard.points("bronze.retention.last_run.time")
    runs = Runs(Unavailable(Outage.QUEUE_AWAY, "the queue"), None, Halted("a mark"), Misconfigured("no age"))
    with pytest.raises(Misconfigured):
        await run_every(SOON, runs.once, asyncio.Event(), telemetry.end)
    assert heard.count("bronze.retention.runs", bronze_outcome="success") == 1
    for error in ("queue-away", "halted", "internal"):
        assert heard.count("bronze.retention.runs", bronze_outcome="failure", error_type=error) == 1
    succeeded, failed = (
        heard.count("bronze.retention.last_run.time", bronze_outcome=outcome) for outcome in ("success", "failure")
    )
    assert time.time() - 60 < succeeded <= failed <= time.time()
    telemetry.count(Deleted.ROWS, "vehicles", 7)
    assert heard.count("bronze.retention.rows", bronze_source="vehicles") == 7
    assert heard.count("bronze.retention.objects", bronze_source="vehicles") == 0


async def test_a_stop_ends_the_wait_for_the_next_run() -> None:
    stop = asyncio.Event()

    async def once() -> int:
        asyncio.get_running_loop().call_soon(stop.set)
        return 0

    assert await run_every(dt.timedelta(days=1), once, stop) == 0


@pytest.mark.parametrize("error", [Misconfigured("no age"), NotPermitted("the user reader")])
async def test_what_no_later_run_can_mend_ends_it(error: Exception) -> None:
    with pytest.raises(type(error)):
        await run_every(SOON, Runs(error).once, asyncio.Event())


@pytest.mark.parametrize("words", [["--every", "1d"], ["--every", "1d", "--yes", "--dry-run"]])
async def test_it_needs_yes(words: list[str]) -> None:
    with pytest.raises(Misconfigured, match="needs --yes"):
        await run_retain(parser().parse_args(["retain", *words]), Settings())


@pytest.mark.parametrize("text", ["0d", "1", "daily"])
def test_the_time_between_runs_is_a_period(text: str) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["retain", "--every", text])
