"""Another number of lanes under load, on real processes, while the command that changes it is killed.

BRONZE_KILL_SEED as for the kill test: it decides where the command is killed.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from bronze.protocol.lane import Lane
from local import programs
from local.programs import Process
from tests.delivery.kill import wiring
from tests.delivery.kill.checker import Found, check
from tests.delivery.kill.harness import CLOSED, CONSUMERS, POLL_S, Clients, System

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
CLIENTS = 3
LANES = "BRONZE_LANES"
#: The numbers of lanes before and after, and how often the command is killed.
CHANGES = ((2, 3, 1), (3, 1, 1))
#: Requests of a change of five sources: claims, seals, removals, new streams.
ACTS_MAX = 50


class Changing(System):
    """A system whose operator sets BRONZE_LANES when the roles have ended, and restarts them."""

    lanes = CHANGES[0][0]

    async def keep(self) -> None:
        """Restart roles that end: because their lanes were replaced (1), because the number of lanes differs (2), or
        because lanes were missing for long (3).
        """
        while True:
            for name, process in self._roles.items():
                if not process.alive():
                    code = process.wait(0)
                    assert code in {1, 2, 3}, f"{name} ended with {code}\n{programs.log_tail(process.log)}"
                    env = {**process.program.env, LANES: str(self.lanes)}
                    self._roles[name] = Process(replace(process.program, env=env), process.log)
            await asyncio.sleep(POLL_S)

    async def change(self, lanes: int, acts: int | None = None) -> int:
        """Run the command and kill it after so many requests; returns its exit code."""
        program = self._roles["api"].program
        env = {
            **programs.environment(program),
            **self.queue_env("admin"),
            **({wiring.ACTS: str(acts)} if acts is not None else {}),
        }
        with (self.root / "lanes.log").open("ab") as log:
            command = await asyncio.create_subprocess_exec(
                sys.executable, "-m", wiring.__name__, "lanes", str(lanes), env=env, stdout=log, stderr=log
            )
            return await command.wait()


def with_retired(found: Found) -> Found:
    """Adds the lanes whose streams were deleted: they end at their last catalog entry."""
    ends = {Lane(one.source, one.lane, one.epoch).stream: (one.last, one.last) for one in found.entries}
    return replace(found, lanes={**ends, **found.lanes})


async def test_another_number_of_lanes_under_load_loses_and_doubles_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """However often the command is killed, another run finishes it. Each accepted record is stored once, in chains
    without gaps, and a retry after the change gets the same 202. The API needs keys.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    rng = random.Random(seed)
    system, stop, deaths = Changing(tmp_path), asyncio.Event(), 0
    async with system, Clients(system, rng) as clients, asyncio.TaskGroup() as group:
        clients.use(await system.keys("create", "fleet", "--scope", "ingest:*"))
        for name, command in (("api", "serve"), *((one, "consume") for one in CONSUMERS)):
            system.start(name, command, **{LANES: str(system.lanes)}, **CLOSED)
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        for _, lanes, kills in CHANGES:
            await clients.some_more(10)
            for part in range(kills):
                acts = rng.randrange(ACTS_MAX * part // kills, ACTS_MAX * (part + 1) // kills)
                deaths += await system.change(lanes, acts) == -SIGKILL
            assert await system.change(lanes) == 0, (tmp_path / "lanes.log").read_text()
            system.lanes = lanes
        await clients.some_more(10)
        stop.set()
        await asyncio.gather(*senders)
        keyed = [pair for pair in clients.accepted if pair[0].key]
        for submission, answer in rng.sample(keyed, 20):
            again = await clients.settle(submission)
            assert (again.status_code, again.json()) == (202, answer)
        found = await system.drained()
        keep.cancel()
    record_property("changes", len(CHANGES))
    record_property("deaths of the command", deaths)
    record_property("records accepted", len(clients.sent.accepted))
    assert deaths, "the command was not killed"
    verdict = check(clients.sent, with_retired(found))
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert {one.principal for entry in found.entries for one in entry.submissions} == {"fleet"}
    assert len({(one.epoch, one.lane) for one in found.entries if one.source == "vehicles"}) >= 4
    assert {(stream.split("_")[1], stream.split("_")[2]) for stream in found.lanes} == {
        (source, "0") for source in ("VEHICLES", "STATUS", "RESULTS", "FAILURES", "CANARY")
    }
