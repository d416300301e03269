"""From an open API to API keys under load, on real processes: the switch, a rotation and a revocation.

BRONZE_KILL_SEED as for the kill test: it decides what the clients send, and where a role is killed.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import httpx

from local.machine import limit_s
from local.programs import Process
from tests.delivery.kill.checker import check
from tests.delivery.kill.harness import CLOSED, Clients, System, attempts, bearer

SEED = os.environ.get("BRONZE_KILL_SEED", "11")
CLIENTS = 3
APIS = ("api-1", "api-2")
#: How long a change may take until every API follows it.
CHANGE_S_MAX = 5.0


class TwoApis(System):
    """A system with two APIs, to which the clients send in turn."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.urls: list[str] = []
        self._rng = rng
        super().__init__(root)

    @property
    def api_url(self) -> str:
        return self._rng.choice(self.urls)

    @api_url.setter
    def api_url(self, url: str) -> None:
        if url:
            self.urls.append(url)

    async def close_api(self, name: str) -> None:
        """Restart an API so that it needs keys."""
        program = self._roles[name].program
        await self.stop(name)
        self._roles[name] = Process(replace(program, env={**program.env, **CLOSED}), self.root / f"{name}.log")
        await self.at_work(name)

    async def answer_to(self, key: str) -> set[int]:
        """The status with which each API answers to this key; nothing while one of them starts again."""
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answers = [await http.get(f"{url}/v1/sources", headers=bearer(key)) for url in self.urls]
            except httpx.TransportError:
                return set()
        return {answer.status_code for answer in answers}

    async def change_holds(self, key: str, status: int) -> float:
        """Wait until every API answers so; returns the seconds that it took."""
        start_s = time.monotonic()
        async for _ in attempts(30, f"not every API answers {status}"):
            if await self.answer_to(key) == {status}:
                break
        return time.monotonic() - start_s


async def test_keys_are_switched_on_and_rotated_under_load(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing is lost or stored twice: while one API is open and the other one needs keys, while a role is killed, and
    while the key changes. A retry of a submission from before is the same submission. A revoked key is refused by every
    API in time.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    rng = random.Random(seed)
    system, stop = TwoApis(tmp_path, rng), asyncio.Event()
    async with system, Clients(system, rng) as clients, asyncio.TaskGroup() as group:
        for name, command in (*((api, "serve") for api in APIS), ("consumer-1", "consume")):
            system.start(name, command)
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(15)
        before = [pair for pair in clients.accepted if pair[0].key]
        first = await system.keys("create", "fleet", "--scope", "ingest:*", "--inherit-open")
        clients.use(first)
        for name in APIS:
            await system.close_api(name)
            await clients.some_more(15)
            await system.strike(rng.choice(["consumer-1", name]), SIGKILL)
            await clients.some_more(15)
        second = await system.keys("rotate", "fleet", "--overlap", "1h")
        await system.change_holds(second, 200)
        clients.use(second)
        await clients.some_more(15)
        await system.keys("revoke", first.split("_")[1])
        revoked_s = await system.change_holds(first, 401)
        await clients.some_more(15)
        stop.set()
        await asyncio.gather(*senders)
        for submission, answer in rng.sample(before, min(10, len(before))):
            again = await clients.settle(submission)
            assert (again.status_code, again.json()) == (202, answer)
        found = await system.drained()
        keep.cancel()
    record_property("records accepted", len(clients.sent.accepted))
    record_property("revoked after, s", round(revoked_s, 1))
    verdict = check(clients.sent, found)
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert revoked_s < limit_s(CHANGE_S_MAX)
    assert {one.principal for entry in found.entries for one in entry.submissions} == {"", "fleet"}
