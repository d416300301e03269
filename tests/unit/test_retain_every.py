"""`bronze retain --every`: run after run, until a stop signal."""

import asyncio
import datetime as dt

import pytest

from bronze.__main__ import parser
from bronze.admin.command_error import CommandError
from bronze.admin.retain_command import run_every
from bronze.errors import Halted, Misconfigured, NotPermitted, Outage, Unavailable
from bronze.settings import Settings
from bronze.wiring.retention import run_retain

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
