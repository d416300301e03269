"""A system whose queue has three servers, with a network and disks that obey the test."""

import asyncio
import random
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Self

import httpx

from bronze.errors import Unavailable
from bronze.servers.jetstream import ApiError, JetStream
from local import programs, servers
from local.programs import LOOPBACK, NotReady, Process, Program, http_get
from local.servers import S3Account
from tests.delivery.cluster.disk import AVAILABLE, Disk
from tests.delivery.cluster.network import ROLES, Network
from tests.delivery.kill import checker, wiring
from tests.delivery.kill.harness import System, attempts
from tests.truth.shifted_clock import Clock

#: Of each server: for clients and for other servers, each also of its proxy, and for its state.
PORTS = 5
NUMBERS = range(1, max(servers.NATS_SERVERS) + 1)
#: The user of the account in which members of the cluster are removed.
SYSTEM_USER = "system"
#: Elections take up to 9 s, and a server that was replaced is caught up after that.
WHOLE_S = 120


class Cluster(System):
    """Servers are named by their number: `nats-1` to `nats-3`. In the cluster they have other names, because a member
    that was removed cannot come back under its name.
    """

    def __init__(self, root: Path, *, replicas: int = max(NUMBERS), sync_interval: str = "always") -> None:
        super().__init__(root)
        self.replicas = replicas
        self.network = Network(self.own_name)
        self.disks: dict[str, Disk] = {}
        self.copies: dict[str, Path] = {}
        self.names = [f"nats-{number}" for number in NUMBERS]
        self._replaced = dict.fromkeys(self.names, 0)
        self.histories = root / "histories"
        self.histories.mkdir()
        self._sync_interval = sync_interval
        self._first_port = programs.free_ports(PORTS * len(NUMBERS))
        self._clocks: dict[str, Clock] = {}

    async def __aenter__(self) -> Self:
        if AVAILABLE:
            for name in self.names:
                self.disks[name] = self._stack.enter_context(Disk(self._state(name)))
        self._stack.enter_context(self.network)
        for name in self.names:
            self.network.add(name, self._port("route proxy", name), self._port("route", name))
            self.network.add(name, self._port("queue proxy", name), self._port("queue", name), party=ROLES)
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        self.network.heal()
        for name in self.names:
            if name in self._servers:
                self._servers[name].signal(SIGCONT)
        await super().__aexit__(*error)

    # --- what is started

    def queue_servers(self) -> Sequence[Program]:
        return [self._queue_server(name) for name in self.names]

    def _queue_server(self, name: str) -> Program:
        passwords = {user: servers.nats_password(self.root / "nats", user).read_text() for user in servers.NATS_USERS}
        routes = ", ".join(f'"nats://{LOOPBACK}:{self._port("route proxy", one)}"' for one in self.names)
        more = f"""\
http: "{LOOPBACK}:{self._port("state", name)}"
cluster {{
    name: "{self.root.name}"
    listen: "{LOOPBACK}:{self._port("route", name)}"
    cluster_advertise: "{LOOPBACK}:{self._port("route proxy", name)}"
    no_advertise: true
    routes: [{routes}]
}}
accounts {{ $SYS {{ users: [{{ user: {SYSTEM_USER}, password: {SYSTEM_USER} }}] }} }}
"""
        program = servers.nats(
            self._state(name),
            self._port("queue", name),
            self.member(name),
            more=more + servers.nats_users(passwords),
            user=("admin", passwords["admin"]),
        )
        config = self._state(name) / "nats.conf"
        config.write_text(config.read_text().replace("sync_interval: always", f"sync_interval: {self._sync_interval}"))
        ports = {kind: self._port(kind, name) for kind in ("queue", "route", "state")}
        of_disk = self.disks[name].command if name in self.disks else ()
        return replace(program, name=name, ports=ports, command=(*of_disk, *program.command))

    def start(self, name: str, command: str, **env: str) -> None:
        clock = self.root / f"{name}.clock"
        self._clocks[name] = Clock(clock)
        history = str(self.histories / name)
        super().start(name, command, **{wiring.CLOCK: str(clock), wiring.HISTORY: history, **env})

    def queue_env(self, user: str) -> Mapping[str, str]:
        urls = ",".join(f"nats://{LOOPBACK}:{self._port('queue proxy', name)}" for name in self.names)
        return {**super().queue_env(user), "BRONZE_NATS_URL": urls, "BRONZE_QUEUE_REPLICAS": str(self.replicas)}

    def member(self, name: str) -> str:
        """A server's name in the cluster."""
        return f"{self.root.name}-{self.names.index(name) + 1 + len(NUMBERS) * self._replaced[name]}"

    def own_name(self, member: str) -> str:
        return self.names[(int(member.rpartition("-")[2]) - 1) % len(NUMBERS)]

    def _state(self, name: str) -> Path:
        return self.root / "nats" / name.rpartition("-")[2]

    def _port(self, kind: str, name: str) -> int:
        kinds = ("queue", "queue proxy", "route", "route proxy", "state")
        return self._first_port + PORTS * self.names.index(name) + kinds.index(kind)

    # --- servers

    def server(self, name: str) -> Process:
        return self._servers[name]

    async def pick(self, rng: random.Random) -> str:
        """A server; more often than by chance one that leads a lane or the catalog."""
        subject = rng.choice(["", "bronze.vehicles.0.>", "catalog.>"])
        if not subject:
            return rng.choice(self.names)
        return self.own_name(await self.leader(subject))

    def others(self, *names: str) -> list[str]:
        return [name for name in self.names if name not in names]

    def kill(self, name: str) -> None:
        self.server(name).signal(SIGKILL)

    def pause(self, name: str) -> None:
        self.server(name).signal(SIGSTOP)

    def resume(self, name: str) -> None:
        self.server(name).signal(SIGCONT)

    async def restart(self, *names: str) -> None:
        """Start servers that were killed or have ended."""
        for name in names:
            await self._start_server(name, self.server(name).program)
        for name in names:
            await asyncio.to_thread(self.server(name).wait_ready)

    async def replace_member(self, name: str) -> None:
        """Start an empty server of a new name in the place of one that was removed from the cluster."""
        self.kill(name)
        self.replace_disk(name)
        self.copies.pop(name, None)
        self._replaced[name] += 1
        await self._start_server(name, self._queue_server(name))
        await asyncio.to_thread(self.server(name).wait_ready)

    async def _start_server(self, name: str, program: Program) -> None:
        self.kill(name)
        async for _ in attempts(30, f"the ports of {name} are taken"):
            if all(map(programs.is_free, program.ports.values())):
                break
        self._servers[name] = self._stack.enter_context(Process(program, self.server(name).log))

    def copy_disk(self, name: str) -> None:
        """Keep what is on a disk at this moment."""
        copy = self.root / f"copy-{name}"
        shutil.rmtree(copy, ignore_errors=True)
        self.pause(name)
        shutil.copytree(self._state(name) / "jetstream", copy)
        self.resume(name)
        self.copies[name] = copy

    def replace_disk(self, name: str, *, copy: bool = False) -> None:
        """Empty the disk of a killed server, or put its copy there."""
        shutil.rmtree(self._state(name) / "jetstream")
        if copy:
            shutil.copytree(self.copies[name], self._state(name) / "jetstream")
        if name in self.disks:
            self.disks[name].settle()

    def set_clock(self, role: str, shift_s: float) -> None:
        self._clocks[role].set(shift_s)

    @property
    def account(self) -> S3Account:
        return self._account

    @property
    def roles(self) -> list[str]:
        return list(self._roles)

    # --- what the cluster says

    async def leader(self, subject: str) -> str:
        """The server that leads the stream on a subject, by its name in the cluster."""
        async for _ in attempts(60, f"nobody leads {subject}"):
            with suppress(Unavailable, ApiError):
                jetstream = await self.queue()
                try:
                    (stream,) = await checker.streams(jetstream, subject)
                    if leader := str((await jetstream.cluster_of(stream))["leader"]):
                        return leader
                finally:
                    await jetstream.close()
        raise AssertionError  # `attempts` raises

    async def led_without(self, *away: str) -> None:
        """Wait until other servers lead all streams."""
        await self._until(partial(self._led_without, {self.member(name) for name in away}), f"without {away}: ")

    async def whole(self) -> None:
        """Wait until each stream has a leader, and each server has what the leaders have."""
        await self._until(self._whole, "")

    async def _until(self, lacks: Callable[[JetStream], Awaitable[str]], missing: str) -> None:
        async for _ in attempts(WHOLE_S, f"{missing}the cluster is not whole: see its logs in {self.root}"):
            with suppress(Unavailable, ApiError, NotReady):
                jetstream = await self.queue()
                try:
                    lack = await lacks(jetstream)
                finally:
                    await jetstream.close()
                if not lack:
                    return

    async def _led_without(self, away: set[str], jetstream: JetStream) -> str:
        for stream in await jetstream.stream_names(">"):
            leader = (await jetstream.cluster_of(stream))["leader"]
            if not leader or leader in away:
                return f"{stream} has no leader"
        return ""

    async def _whole(self, jetstream: JetStream) -> str:
        for name in self.names:
            await asyncio.to_thread(http_get, self._port("state", name), "/healthz")
        for stream in await jetstream.stream_names(">"):
            of = await jetstream.cluster_of(stream)
            followers = of.get("replicas") or []
            if not of["leader"] or len(followers) != self.replicas - 1:
                return f"{stream} has {len(followers)} followers"
            if any(not one["current"] or one.get("offline") for one in followers):
                return f"{stream} has followers that lag"
        return ""

    async def ready(self) -> tuple[int, dict[str, str]]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.get(f"{self.api_url}/readyz")
            return answer.status_code, answer.json()

    async def leaderless(self) -> float:
        """The series that the alert BronzeQueueLeaderless reads."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            text = (await http.get(f"{self.api_url}/metrics")).text
        found = re.search(r"^bronze_queue_leaderless(?:\{.*\})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else -1

    async def halted(self) -> set[str]:
        """The sources of which a lane has halted, as the alert BronzeLaneHalted sees it."""
        found: set[str] = set()
        for name, process in self._roles.items():
            if name.startswith("consumer"):
                with suppress(NotReady):
                    port = process.program.ports["http"]
                    text = (await asyncio.to_thread(http_get, port, "/metrics")).decode()
                    for line in text.splitlines():
                        if line.startswith("bronze_consumer_errors_total{") and 'error_type="halted"' in line:
                            labels, _, value = line.rpartition(" ")
                            if float(value) > 0 and (source := re.search(r'bronze_source="(\w+)"', labels)):
                                found.add(source[1])
        return found
