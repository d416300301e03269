"""A run of faults on a cluster under load, while roles are killed and paused too."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGSTOP

from tests.delivery.cluster import faults, history
from tests.delivery.cluster.system import Cluster
from tests.delivery.kill import wiring
from tests.delivery.kill.checker import Verdict, check
from tests.delivery.kill.harness import CONSUMERS, Clients

CLIENTS = 3
#: A fault that makes an election necessary takes 4 s to 9 s until that.
HOLD_S = (0.5, 10.0)
ROLE_KILLED, ROLE_PAUSED = "role killed", "role paused"


@dataclass
class Figures:
    """What happened during the faults of each kind."""

    faults: Counter[str] = field(default_factory=Counter)
    #: the kind during which a record was accepted
    records: dict[str, str] = field(default_factory=dict)
    halted: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)

    def by_kind(self) -> Mapping[str, Mapping[str, int]]:
        kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for kind, times in self.faults.items():
            kinds[kind].update({"faults": times, "accepted": 0, "lost": 0, "doubled": 0})
            kinds[kind]["halted lanes"] = self.halted[kind]
        for counted, records in (
            ("accepted", self.records),
            ("lost", self.verdict.lost),
            ("doubled", self.verdict.doubled),
        ):
            for record in records:
                kinds[self.records.get(record, "between faults")][counted] += 1
        return kinds


def order(rng: random.Random, kinds: Sequence[str], count: int) -> list[str]:
    """So many faults: each kind as often as the others, in any order."""
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += rng.sample(kinds, len(kinds))
    return chosen[:count]


async def run(root: Path, seed: int, kinds: Sequence[str], figures: Figures, say: Callable[[str], None]) -> Verdict:
    """A fault of each of `kinds`, one after the other; then everything accepted is checked."""
    rng, stop = random.Random(seed), asyncio.Event()
    async with Cluster(root) as cluster, Clients(cluster, rng, timeout_s=5) as clients, asyncio.TaskGroup() as group:
        cluster.start("api", "serve")
        for name, lock in zip(CONSUMERS, ("", wiring.HANDED), strict=True):
            cluster.start(name, "consume", **{wiring.LOCK: lock})
        keep = group.create_task(cluster.keep())
        await cluster.whole()
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(5)
        for number, kind in enumerate(kinds, 1):
            began_s, before, hold_s = time.monotonic(), len(clients.accepted), rng.uniform(*HOLD_S)
            async with faults.ALL[kind].fault(cluster, rng):
                strike = group.create_task(strike_role(cluster, rng, hold_s))
                await asyncio.sleep(hold_s)
            figures.faults.update((kind, await strike))
            await cluster.whole()
            await clients.some_more(3)
            accepted = clients.accepted[before:]
            figures.records |= {record: kind for submission, _ in accepted for record in submission.records}
            say(
                f"{number:4} of {len(kinds)}  {kind:40} {hold_s:4.1f} s, whole after "
                f"{time.monotonic() - began_s:5.1f} s, {len(accepted)} submissions accepted"
            )
            figures.halted[kind] += len(halted := await cluster.halted())
            assert not halted, f"lanes of {halted} have halted"
        stop.set()
        await asyncio.gather(*senders)
        found = await cluster.drained()
        keep.cancel()
    figures.verdict = check(clients.sent, found)
    operations = history.read(cluster.histories.iterdir())
    stale = history.not_linearizable(operations)
    say(
        f"{len(clients.sent.accepted)} records accepted, {len(found.objects)} objects, {len(operations)} operations "
        f"on positions, stale reads of {stale}"
    )
    unexplained = history.not_linearizable(history.writes(operations))
    assert not unexplained, f"no order explains the compare-and-set of {unexplained}, logs in {root}"
    return figures.verdict


async def strike_role(cluster: Cluster, rng: random.Random, within_s: float) -> str:
    """Kill or pause a role at some moment; returns which."""
    number = rng.choice((SIGKILL, SIGSTOP))
    role, pause_s = rng.choice(cluster.roles), rng.uniform(0.5, 4)
    await asyncio.sleep(rng.uniform(0, within_s))
    await cluster.strike(role, number, pause_s)
    return ROLE_KILLED if number is SIGKILL else ROLE_PAUSED
