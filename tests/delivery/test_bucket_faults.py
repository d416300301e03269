"""The bucket answers late, wrongly or not at all, and nothing is lost or doubled: real roles, and the real S3 server
behind a proxy that injects faults.

BRONZE_KILL_SEED as for the kill test: it decides the submissions and the order of the faults.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.delivery.kill import wiring
from tests.delivery.kill.checker import check
from tests.delivery.kill.harness import CONSUMERS, Clients, System, attempts
from tests.faulty_bucket import FAULTS, Fault, Faults, FaultyBucket

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
CLIENTS = 6
#: Each kind of fault is injected at least so often.
EACH_LEAST = 3
NEAR_S, FAR_S = 0.005, 0.15
STATUS_CHECKS = 10


class Remote(System):
    """A system whose roles reach the bucket only through a proxy."""

    def proxy(self, faults: Faults, each_way_s: float = 0) -> FaultyBucket:
        return FaultyBucket(self._account.port, faults, each_way_s)

    def start_remote(self, name: str, command: str, bucket: FaultyBucket, **env: str) -> None:
        self.start(name, command, **{"AWS_ENDPOINT_URL_S3": bucket.url, **env})

    def complaints(self) -> list[str]:
        """The lines of the roles' logs that say that a lane halted, or an error that nobody expected."""
        lines = [line for name in self._roles for line in (self.root / f"{name}.log").read_text().splitlines()]
        return [line for line in lines if "halted" in line or "unexpected error" in line]


async def test_faults_of_the_bucket_lose_and_double_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Whatever a request to the bucket gets instead of its answer, and whether it was carried out or not: each accepted
    record is stored once, and no lane halts. Two consumers work on the same lanes, from a near region and a far one.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    faults, stop = Faults(random.Random(seed)), asyncio.Event()
    async with (
        Remote(tmp_path) as system,
        system.proxy(faults, NEAR_S) as near,
        system.proxy(faults, FAR_S) as far,
        Clients(system, random.Random(seed), timeout_s=10) as clients,
        asyncio.TaskGroup() as group,
    ):
        system.start_remote("api", "serve", far)
        for name, bucket in zip(CONSUMERS, (near, far), strict=True):
            system.start_remote(name, "consume", bucket, **{wiring.LOCK: wiring.HANDED})
        keep = group.create_task(system.keep())
        for name in CONSUMERS:
            await system.at_work(name)
        await clients.deliver(clients.submission(keyed=True))
        await system.drained()
        faults.active = True
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        async for _ in attempts(120, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: too few faults\n{faults.table()}"):
            bodies_cut = faults.injected[Fault.CUT_MIDDLE, "GET"]
            if bodies_cut and all(faults.times(fault) >= EACH_LEAST for fault in FAULTS):
                break
        stop.set()
        await asyncio.gather(*senders)
        faults.active = False
        found = await system.drained()
        for _, answer in clients.accepted[:STATUS_CHECKS]:
            async for _ in attempts(60, f"{answer['submission_id']} has no status"):
                if await clients.status(answer["submission_id"]) in {"stored", "quarantined"}:
                    break
        complaints = system.complaints()
        keep.cancel()
    sent, injected = clients.sent, faults.injected.total()
    with capsys.disabled():
        sys.stdout.write(
            f"\nbucket faults: BRONZE_KILL_SEED={seed}, logs in {tmp_path}\n{faults.table()}\n{near.delayed} requests "
            f"from the near region, {far.delayed} from the far one; {len(sent.accepted)} records accepted, "
            f"{len(found.objects)} objects, {len(found.quarantine)} in quarantine\n"
        )
    record_property("faults", injected)
    record_property("records accepted", len(sent.accepted))
    record_property("objects", len(found.objects))
    verdict = check(sent, found)
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert not complaints, f"BRONZE_KILL_SEED={seed}: {complaints[:3]}"
    assert near.delayed
    assert far.delayed


async def test_checker_finds_an_object_that_the_bucket_did_not_write(tmp_path: Path) -> None:
    """If the bucket answers 200 to a PUT and writes nothing, the checker finds the lost records."""
    faults = Faults(random.Random(9), [Fault.SWALLOWED])
    async with (
        Remote(tmp_path) as system,
        system.proxy(faults) as bucket,
        Clients(system, random.Random(9), timeout_s=10) as clients,
        asyncio.TaskGroup() as group,
    ):
        system.start_remote("api", "serve", bucket)
        system.start_remote("consumer", "consume", bucket)
        keep = group.create_task(system.keep())
        await clients.deliver(clients.submission(keyed=True))
        await system.drained()  # the check of the bucket at the consumer's start, which would find the fault, is over
        faults.active = True
        async for _ in attempts(60, "no write was swallowed"):
            await clients.deliver(clients.submission(keyed=True))
            if faults.times(Fault.SWALLOWED):
                break
        faults.active = False
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert faults.times(Fault.SWALLOWED)
    assert verdict.lost
    assert verdict.catalog
    assert not verdict.doubled
