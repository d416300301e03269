"""A rehearsed restore: the bucket alone is left, and everything else comes from it: `make restore-test N=2000`.

The queue, with the catalog and what waits in it, and the index of the API are thrown away. Then an operator does what
docs/delivery.md says: an empty nats-server, `bronze catalog rebuild`, `bronze init`, the roles. Senders send their last
submissions again, under the same keys. Each step is timed, and at the end each record is stored exactly once.
"""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local.machine import describe
from local.watch import leave_nothing
from tests.delivery.kill.checker import Found, Verdict, check
from tests.delivery.kill.harness import Clients, Submission, System, attempts
from tests.delivery.test_change import with_retired

CLIENTS = 8
#: Of the submissions before: so many wait in the queue when it is lost, and so many stored ones are sent again.
WAITING, REPEATED = 5, 20
#: Each message becomes an object, so that there are many.
SMALL_OBJECTS = {"BRONZE_OBJECT_MESSAGES_MAX": "1"}


@dataclass
class Rehearsal:
    """What happened. `steps` has the seconds of each step, in order."""

    objects: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    #: stored submissions that got another answer than before
    changed: list[str] = field(default_factory=list)
    found: Found | None = None
    verdict: Verdict = field(default_factory=Verdict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.steps[name] = time.monotonic() - began

    def __str__(self) -> str:
        rows = (f"{seconds:8.2f} s  {name}" for name, seconds in self.steps.items())
        total = f"{sum(self.steps.values()):8.2f} s  in all, with {self.objects:,} objects in the bucket"
        return "\n".join((*rows, total))


class Restored(System):
    """A system whose queue is lost, with its data, users and passwords."""

    async def stop_all(self) -> None:
        for name in list(self._roles):
            await self.stop(name)

    def lose_queue(self) -> None:
        self._servers.pop("nats").stop()
        shutil.rmtree(self.root / "nats")
        shutil.rmtree(self.root / "view")

    async def run(self, *words: str) -> str:
        """The output of a command, which has to succeed."""
        command = await self.command(*words, "--yes")
        out, _ = await command.communicate()
        assert command.returncode == 0, out.decode()
        return out.decode()

    def start_roles(self) -> None:
        self.start("api", "serve", BRONZE_VIEW_DIR=str(self.root / "view"))
        self.start("consumer", "consume", **SMALL_OBJECTS)


async def rehearse(root: Path, objects: int, seed: int, say: Callable[[str], None]) -> Rehearsal:
    """Fill a bucket with so many objects or more, lose everything else, and restore it."""
    rehearsal, rng = Rehearsal(), random.Random(seed)
    (root / "view").mkdir()
    async with Restored(root) as system, Clients(system, rng) as clients:
        system.start_roles()
        await system.at_work("api")
        say(f"storing {objects:,} objects")
        await _send(clients, objects)
        before = await system.drained()
        rehearsal.objects = len(before.objects)
        stored = [pair for pair in clients.accepted if pair[0].key]

        await system.stop("consumer")
        waiting = [clients.submission(keyed=True) for _ in range(WAITING)]
        lost = [(await clients.deliver(submission))["submission_id"] for submission in waiting]
        await system.stop_all()
        system.lose_queue()
        say("the queue and the index are gone")

        with rehearsal.step("an empty nats-server"):
            await asyncio.to_thread(system.start_servers, *system.queue_servers())
        with rehearsal.step("bronze catalog rebuild"):
            await system.run("catalog", "rebuild")
        with rehearsal.step("bronze init"):
            await system.run("init")
        with rehearsal.step("API ready"):
            (root / "view").mkdir()
            system.start_roles()
            await system.at_work("api")
        with rehearsal.step("a new record accepted and stored"):
            answer = await clients.deliver(clients.submission(keyed=True))
            async for _ in attempts(60, "nothing is stored"):
                if await clients.status(answer["submission_id"]) in {"stored", "quarantined"}:
                    break
        assert [await clients.status(one) for one in lost] == [None] * WAITING, "the queue was not lost"
        with rehearsal.step("the last submissions sent again"):
            for submission in waiting:
                await clients.deliver(submission)
            rehearsal.changed = await _repeat(clients, stored[-REPEATED:])
        await _send(clients, objects // 10)
        rehearsal.found = await system.drained()
        await system.stop_all()
    rehearsal.verdict = check(clients.sent, with_retired(rehearsal.found))
    return rehearsal


async def _send(clients: Clients, count: int) -> None:
    """Have so many more submissions accepted, as fast as it goes."""
    enough = len(clients.accepted) + count

    async def one() -> None:
        while len(clients.accepted) < enough:
            await clients.deliver(clients.submission())

    await asyncio.gather(*(one() for _ in range(CLIENTS)))


async def _repeat(clients: Clients, stored: Sequence[tuple[Submission, object]]) -> list[str]:
    """The submissions that now get another answer."""
    changed = []
    for submission, accepted in stored:
        again = await clients.settle(submission)
        if (again.status_code, again.json()) != (202, accepted):
            changed.append(f"{submission.key}: {accepted}, then {again.status_code} {again.text}")
    return changed


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.restore", description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, default=2000, help="objects in the bucket, at least (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the records (%(default)s)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bronze-restore-"))
    say(f"{describe()}, load {os.getloadavg()[0]:.1f}; logs in {root}")
    try:
        with leave_nothing():
            done = asyncio.run(rehearse(root, args.objects, args.seed, say))
    except KeyboardInterrupt:
        return 130
    say(str(done))
    for problem in done.changed:
        say(f"PROBLEM: {problem}")
    say(f"accepted records in the bucket: {done.verdict}")
    if done.changed or not done.verdict:
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
