"""The whole system of the run: its servers, and roles of one or several processes that a supervisor restarts."""

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from local.builds import REPOSITORY, build_all
from local.exporters import Exporters
from local.otlp import Receiver
from local.programs import LOOPBACK, READY_S_MAX, LocalError, NotReady, Process, Program, free_ports, get_json
from local.stack import Ports, Stack
from tests.system.blackbox import System, until
from tests.truth.shifted_clock import Clock

API, CONSUMER = ROLES = ("api", "consumer")
COMMANDS = {API: "serve", CONSUMER: "consume"}
SUPERVISE_S = 0.2


@dataclass
class Member:
    """One process of a role, with a clock of its own. The first of a role has the same instance id at each start, as in
    `make up`; the others have a new one at each start, as containers have.
    """

    system: System
    role: str
    number: int
    port: int
    clock: Path
    starts: int = 0
    process: Process | None = None
    supervised: bool = True

    @property
    def name(self) -> str:
        return self.role if self.number == 1 else f"{self.role}-{self.number}"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def _program(self) -> Program:
        self.starts += 1
        stack = self.system.stack
        base = self.system.role(self.role)
        instance = stack.instance(self.role)
        if self.number > 1:
            instance = f"{stack.name}-{self.name}-{self.starts}"
        probe = "/readyz" if self.role == API else "/livez"

        def ready() -> None:
            running = get_json(self.port, probe).get("service_instance_id")
            if running != instance:
                raise NotReady(f"port {self.port} is the instance {running!r}, not {instance!r}")

        return replace(
            base,
            name=self.name,
            command=(sys.executable, "-m", "tests.truth.shifted_clock", str(self.clock), COMMANDS[self.role]),
            ports={"http": self.port},
            ready=ready,
            env={
                **base.env,
                "PYTHONPATH": str(REPOSITORY),
                "BRONZE_API_PORT": str(self.port),
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(self.port),
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
            },
        )

    def start(self) -> None:
        """Starts the process, without waiting until it is ready."""
        self.process = Process(self._program(), self.system.log(self.name))

    def supervise(self) -> None:
        """Starts the process again if it has ended."""
        if self.supervised and self.process and not self.process.alive():
            with suppress(LocalError):  # its port is still in use
                self.start()

    def end(self, number: signal.Signals) -> None:
        """Ends the process by a signal; the supervisor restarts it."""
        if self.process and self.process.alive():
            self.process.signal(number)

    def stop(self) -> None:
        self.supervised = False
        if self.process:
            self.process.stop()


@dataclass
class Running:
    """The system while it runs."""

    system: System
    receiver: Receiver
    servers: Mapping[str, Process]
    members: list[Member] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def prometheus(self) -> Process:
        return self.servers["prometheus"]

    @property
    def zipkin(self) -> Process:
        return self.servers["zipkin"]

    @property
    def collector(self) -> Process:
        return self.servers["otel-collector"]

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member.role == role]

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    def api_urls(self) -> list[str]:
        """The addresses of the APIs, also of one that is being restarted: a load balancer would not know either."""
        return [member.url for member in self.of(API)]

    def add(self, role: str, number: int) -> None:
        """Starts one more process of a role, and has Prometheus scrape it."""
        root, ports = self.system.stack.root, self.system.stack.ports
        port = {API: ports.api, CONSUMER: ports.consumer}[role] if number == 1 else free_ports()
        member = Member(self.system, role, number, port, root / f"clock-{role}-{number}")
        Clock(member.clock)
        member.start()
        assert member.process
        member.process.wait_ready()
        with self._lock:
            self.members = [*self.members, member]
        self._write_targets()

    def remove(self, name: str) -> None:
        """Stops a process for good."""
        member = self.member(name)
        with self._lock:
            self.members = [m for m in self.members if m is not member]
        member.stop()
        self._write_targets()

    def _write_targets(self) -> None:
        folder = self.system.stack.root / "prometheus" / "targets"
        for role in ROLES:
            listed = [{"targets": [f"{LOOPBACK}:{member.port}" for member in self.of(role)]}]
            # replaced as a whole: Prometheus would drop all targets of a file that it reads half-written
            written = folder / f"scrape-{role}.new"
            written.write_text(json.dumps(listed))
            written.replace(folder / f"scrape-{role}.yaml")

    def supervise(self, over: threading.Event) -> None:
        while not over.wait(SUPERVISE_S):
            with self._lock:
                for member in self.members:
                    member.supervise()

    def wait_ready(self) -> None:
        """Returns when every process of the roles answers."""
        for member in self.members:
            until(f"{member.name} answers", partial(_answers, member), READY_S_MAX)


def _answers(member: Member) -> bool:
    """Whether the current process of a member answers; it may be replaced meanwhile."""
    try:
        process = member.process
        assert process
        process.program.ready()
    except NotReady:
        return False
    return True


@contextmanager
def running(root: Path, env: Mapping[str, str]) -> Iterator[Running]:
    """Starts the system with one API, one consumer and the canary. Its traces go to a receiver of the run, and to
    Zipkin, where the canary reads them.
    """
    exporters = Exporters(metrics=("prometheus",), traces=("otlp-http", "zipkin"), logs=("none",))
    stack = Stack.create(root, Ports.free(), build_all(), exporters)
    system = System(stack, env)
    servers = [p for p in stack.servers if p.name in {"nats", "seaweedfs", "prometheus", "zipkin"}]
    with Receiver() as receiver, ExitStack() as ends:
        collector = replace(stack.collector, env={**stack.collector.env, "OTLP_TRACES_ENDPOINT": receiver.url})
        whole = Running(system, receiver, ends.enter_context(system.running(*servers, collector)))
        over = threading.Event()
        supervisor = threading.Thread(target=whole.supervise, args=(over,), daemon=True)
        try:
            for role in ROLES:
                whole.add(role, 1)
            supervisor.start()
            ends.enter_context(system.running(system.role("canary")))
            yield whole
        finally:
            over.set()
            with suppress(RuntimeError):  # it was not started
                supervisor.join()
            for member in reversed(whole.members):
                member.stop()
