"""Another version next to this one: `make mixed BASE=<commit>`.

A rolling upgrade and back: an API of one version and a consumer of the other use one queue and one bucket, then the
other way around, then two of each; each process is replaced by a new one that is ready before, and the servers are
restarted. Meanwhile clients send bodies of all kinds, and retry under the same key to any API. No answer is another one
than 202 or a 503, and at the end each record has to be in the bucket or in quarantine exactly once.
"""

import argparse
import asyncio
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import pyarrow as pa

from bronze.queue_servers import QueueServers
from bronze.servers.jetstream import JetStream
from local import programs, servers
from local.programs import LOOPBACK, Process, http_get, start
from tests.compat import scenario, state
from tests.compat.release import installed
from tests.compat.scenario import HERE, Sending
from tests.compat.site import QUIET, Site
from tests.delivery.kill import checker
from tests.delivery.kill.checker import Found, Sent
from tests.delivery.kill.harness import SETTINGS, attempts

BASE, THIS = "base", "this"
LANES = 2
CLIENTS = 4
REST_S_MAX = 0.1
#: The share of accepted submissions that are sent again.
AGAIN = 0.3
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Phase:
    """The versions that run at the same time."""

    apis: Sequence[str]
    consumers: Sequence[str]
    #: Queue and bucket are replaced, too, one after the other.
    servers: bool = False

    def __str__(self) -> str:
        servers = ", servers restarted" if self.servers else ""
        return f"API of {' and '.join(self.apis)}, consumer of {' and '.join(self.consumers)}{servers}"


PHASES = (
    Phase([BASE], [BASE]),
    Phase([BASE], [THIS]),
    Phase([THIS], [BASE]),
    Phase([BASE, THIS], [BASE, THIS]),
    Phase([THIS], [THIS], servers=True),
    Phase([BASE], [THIS]),
    Phase([BASE], [BASE], servers=True),
)


# --- load


class Bodies:
    """Submissions with unique records."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = itertools.count()
        self.kinds: Counter[str] = Counter()

    def next(self) -> Sending:
        rng, name = self._rng, f"sent-{next(self._numbers)}"
        kinds: Sequence[tuple[int, Callable[[str], Sending]]] = (
            (10, lambda name: scenario.lines(*self._records(name, 3))),
            (4, lambda name: scenario.lines(*self._records(name, 100))),
            (1, lambda name: scenario.lines(*self._records(name, 9, 250_000))),
            (4, lambda name: scenario.lines(*self._records(name, 2), bad=[f'{{"bad": "{name}"}}'])),
            (1, lambda name: scenario.lines(*self._records(name, 9, 250_000), bad=[f'{{"bad": "{name}"}}'])),
            (4, lambda name: scenario.document(*self._records(name, 2))),
            (2, lambda name: scenario.document(*self._records(name, 60))),
            (3, lambda name: self._columns(name, 3, scenario.arrow)),
            (3, lambda name: self._columns(name, 300, scenario.parquet)),
        )
        number = rng.choices(range(len(kinds)), [weight for weight, _ in kinds])[0]
        sending = kinds[number][1](name)
        self.kinds[f"{sending.media}{', with rejected records' if sending.quarantine else ''}"] += 1
        return replace(sending, headers={"Idempotency-Key": name} if rng.random() < 0.8 else {})

    def _records(self, name: str, count: int, size: int = 0) -> list[str]:
        return scenario.many(name, count, size)

    def _columns(self, name: str, rows: int, made: Callable[[pa.Table], Sending]) -> Sending:
        """Rows that are identified by their undeclared column, which becomes their payload."""
        names = [f"{name}-{row}" for row in range(rows)]
        table = scenario.table(name, rows, unit=True)
        sending = made(table.set_column(table.schema.get_field_index("undeclared"), "undeclared", pa.array(names)))
        return replace(sending, payloads=tuple(f'{{"undeclared":"{one}"}}' for one in names))


@dataclass
class Clients:
    """Clients that send to any running API, and retry until they have an answer."""

    rng: random.Random
    apis: Sequence[str] = ()
    sent: Sent = field(default_factory=Sent)
    again: int = 0
    #: The longest time from the first request of a submission to its 202, since it was set to 0.
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.rng)
        self._http = httpx.AsyncClient(timeout=10, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.deliver(self.bodies.next())
            await asyncio.sleep(self.rng.uniform(0, REST_S_MAX))

    async def deliver(self, sending: Sending) -> None:
        records = {*sending.payloads, *(_bad(sending) if sending.quarantine else ())}
        began = time.monotonic()
        answer = await (self._settle(sending) if sending.key else self._post(sending))
        if answer is None or answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            nothing = answer is not None and answer.json()["type"] != "/problems/outcome-unknown"
            (self.sent.refused if nothing else self.sent.unknown).update(records)
            return
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        accepted = answer.json()
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.sent.accepted |= records
        self.sent.submissions[accepted["submission_id"]] = sending.key is not None
        if sending.key and self.rng.random() < AGAIN:
            repeated = await self._settle(sending)
            self.again += 1
            if (repeated.status_code, repeated.json()) != (httpx.codes.ACCEPTED, accepted):
                self.wrong.append(f"{sending.key}: {accepted}, then {repeated.status_code} {repeated.text}")

    async def _settle(self, sending: Sending) -> httpx.Response:
        async for _ in attempts(60, f"{sending.key} was not settled"):
            answer = await self._post(sending)
            if answer is not None and answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
        raise AssertionError  # `attempts` raises

    async def _post(self, sending: Sending) -> httpx.Response | None:
        url = f"{self.rng.choice(self.apis)}/v1/ingest/{sending.source}"
        asked = {"on_invalid": "quarantine"} if sending.quarantine else {}
        headers = {"Content-Type": sending.media, **sending.headers}
        try:
            return await self._http.post(url, params=asked, content=sending.body, headers=headers)
        except httpx.TransportError:
            return None


def _bad(sending: Sending) -> Iterator[str]:
    return (line for line in sending.body.decode().splitlines() if line.startswith('{"bad"'))


# --- the roles


class Versions:
    """The roles of two versions on one site, and its servers."""

    def __init__(self, sites: Mapping[str, Site], servers: Sequence[Process]) -> None:
        self._sites = sites
        self._servers = servers
        self._running: dict[tuple[str, str], Process] = {}
        self._starts = itertools.count()

    async def become(self, phase: Phase, clients: Clients) -> None:
        """Start the new roles of the phase, then stop those that it lacks: under load, as in an upgrade."""
        wanted = {("serve", one) for one in phase.apis} | {("consume", one) for one in phase.consumers}
        for command, version in sorted(wanted - self._running.keys()):
            program = self._sites[version].role(f"{command}-{version}-{next(self._starts)}", command)
            if command == "serve":  # a load balancer sends nothing to it before
                program = replace(program, ready=partial(http_get, program.ports["http"], "/readyz"))
            self._running[command, version] = await asyncio.to_thread(self._sites[version].started, program)
        clients.apis = [f"http://{LOOPBACK}:{self._running['serve', one].program.ports['http']}" for one in phase.apis]
        for gone in self._running.keys() - wanted:
            await self._stop(gone)
        for server in self._servers if phase.servers else ():
            await asyncio.to_thread(server.restart)

    async def _stop(self, which: tuple[str, str]) -> None:
        process = self._running.pop(which)
        await asyncio.to_thread(process.stop)
        assert process.wait(0) == 0, programs.log_tail(process.log)

    async def end(self) -> None:
        for which in list(self._running):
            await self._stop(which)

    def kill(self) -> None:
        for process in self._running.values():
            process.stop()


async def at_rest(site: Site) -> None:
    """Waits until each lane is stored to its end and purged."""
    async for _ in attempts(60, "the lanes were not drained and purged"):
        lanes = await asyncio.to_thread(state.lanes, site.nats_port)
        if all(first == last == stored for first, last, stored in lanes.values()):
            break


async def found(site: Site) -> Found:
    """The contents of the servers."""
    jetstream = await JetStream.connect(QueueServers((site.settings["BRONZE_NATS_URL"],)))
    try:
        entries, identities = await checker.read_catalog(jetstream)
    finally:
        await jetstream.close()
    objects, quarantine, sizes = await asyncio.to_thread(checker.read_bucket, site.account)
    lanes = await asyncio.to_thread(state.lanes, site.nats_port)
    ends = {name: (first, last) for name, (first, last, _) in lanes.items()}
    return Found(objects, quarantine, sizes, entries, identities, ends)


def poison(site: Site) -> list[str]:
    """The messages that a consumer could not decode, with the reasons."""
    objects = state.read_bucket(site.s3, site.account.bucket)
    return [f"{key}: {one['metadata']['bronze-reason']}" for key, one in objects.items() if key.endswith(".message")]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def play(sites: Mapping[str, Site], servers: Sequence[Process], seed: int, phase_s: float) -> bool:
    """Run the phases under load and print the result; returns whether nothing is wrong."""
    rng, stop = random.Random(seed), asyncio.Event()
    clients, versions, site = Clients(rng), Versions(sites, servers), sites[THIS]
    try:
        await versions.become(PHASES[0], clients)
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(clients.run(stop))
            for phase in PHASES:
                clients.longest_s = 0.0
                await versions.become(phase, clients)
                before, stored = len(clients.sent.submissions), await asyncio.to_thread(_stored, site)
                await asyncio.sleep(phase_s)
                # a start takes long on a busy machine, and a lane that is left to another version stays so
                async for _ in attempts(60, f"nothing was stored by: {phase}"):
                    if (now := await asyncio.to_thread(_stored, site)) > stored:
                        break
                sent = len(clients.sent.submissions) - before
                say(
                    f"{sent:6} submissions, the slowest after {clients.longest_s:.2f} s, "
                    f"{now - stored:6} messages stored: {phase}"
                )
            stop.set()
        await at_rest(site)
        await versions.end()
    finally:
        versions.kill()
        await clients.close()
    for kind, count in sorted(clients.bodies.kinds.items()):
        say(f"{count:6} bodies {kind}")
    problems = [*clients.wrong, *await asyncio.to_thread(poison, site)]
    if not problems:  # else the checker could not read it all either
        held = await found(site)
        verdict = checker.check(clients.sent, held)
        problems += [] if verdict else [str(verdict)]
        say(
            f"{len(clients.sent.accepted)} records of {len(clients.sent.submissions)} submissions accepted, "
            f"{clients.again} sent again, {len(clients.sent.unknown)} records without an answer; {len(held.objects)} "
            f"objects, {len(held.quarantine)} messages of rejected records"
        )
    for problem in problems[:PROBLEMS_SHOWN]:
        say(f"WRONG: {problem[:1000]}")
    return not problems


def _stored(site: Site) -> int:
    return sum(stored for _, _, stored in state.lanes(site.nats_port).values())


def side_by_side(base: Path, root: Path, seed: int, phase_s: float) -> bool:
    """Run the phases with the command of another version, and print the result; returns whether nothing is wrong."""
    commands = {BASE: base, THIS: Path(servers.executable("bronze"))}
    account = servers.s3_account(root / "s3", programs.free_ports(servers.SEAWEEDFS_PORTS))
    env = {**SETTINGS, **QUIET, "BRONZE_LANES": str(LANES), "BRONZE_SOURCES": str(HERE / "sources-2.toml")}
    with ExitStack() as stack:
        bucket = stack.enter_context(start(servers.seaweedfs(root / "s3", account), root / "s3.log"))
        this = stack.enter_context(Site(root, account, env))
        queue = stack.enter_context(start(this.queue(), root / "nats.log"))
        sites = {version: replace(this, bronze=command) for version, command in commands.items()}
        try:
            return asyncio.run(play(sites, (queue, bucket), seed, phase_s))
        except* AssertionError as errors:
            say(f"WRONG: {[str(error)[:1000] for error in errors.exceptions]}")
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat.mixed", description=__doc__)
    parser.add_argument("base", help="the other version: a commit, a tag or a branch")
    parser.add_argument("--seconds", type=float, default=10, help="for how long each of the phases runs (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args(arguments)
    base = installed(args.base)
    root = Path(tempfile.mkdtemp(prefix="bronze-mixed-"))
    say(f"mixed: BASE={args.base} SEED={args.seed}, logs in {root}")
    well = side_by_side(base, root, args.seed, args.seconds)
    say(f"{args.base} and this version {'work side by side' if well else 'DO NOT work side by side'}")
    if well:
        shutil.rmtree(root)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
