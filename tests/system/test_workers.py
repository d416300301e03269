"""Several processes of API and consumer: each has its own telemetry, one that is killed is replaced, and no process is
left when the one that started them ends.
"""

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from local import servers
from local.machine import limit_s
from local.programs import NotReady, Process, environment, http_get
from tests.system.blackbox import STOP_S_MAX, Metrics, System, until, vehicles
from tests.system.test_sources_reloaded import FIRST, SECOND

WORKERS = 2
ROLES = ("api", "consumer")


@pytest.fixture
def several(branch: System) -> System:
    """A system whose API and consumer have several workers."""
    return replace(branch, stack=replace(branch.stack, workers=WORKERS))


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    """Whether a process has ended, with all its threads, though perhaps nobody has waited for it yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" and [task.name for task in Path(f"/proc/{pid}/task").iterdir()] == [str(pid)]
    except FileNotFoundError:
        return True


def worker_metrics(system: System, role: str) -> Sequence[Metrics]:
    return [Metrics.parse(http_get(port, "/metrics").decode()) for port in system.stack.worker_ports(role)]


def instances(system: System, role: str) -> list[str]:
    """The instance ids of all workers."""
    return [f"{system.stack.instance(role)}-{number}" for number in range(1, WORKERS + 1)]


def accept(system: System, mark: str, number: int) -> None:
    """Sends a record until it is accepted: a connection to a process that is killed is lost."""
    record = vehicles(f"{mark}-{number}")[0]

    def accepted() -> bool:
        try:
            return system.post("vehicles", record, Idempotency_Key=f"{mark}-{number}").status_code == 202
        except httpx.TransportError:
            return False

    until(f"record {number} is accepted", accepted)


@contextmanager
def load(system: System, mark: str) -> Iterator[list[bytes]]:
    """Sends records until the end of the context; they are listed once they are accepted."""
    sent: list[bytes] = []
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            accept(system, mark, len(sent))
            sent.extend(vehicles(f"{mark}-{len(sent)}"))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        done.set()
        sender.join()


def further(sent: Sequence[bytes], records: int) -> None:
    before = len(sent)
    until(f"{records} more records are accepted", lambda: len(sent) >= before + records)


def test_each_worker_has_metrics_of_its_own(several: System, mark: str) -> None:
    """Each `/metrics` is of one instance. Their sums are what was sent and stored, and so are those that arrive by
    OTLP. The port that the workers share has none.
    """
    number = 40
    with several.queue(), several.running(several.role("api"), several.role("consumer")):
        for each in range(number):
            accept(several, mark, each)
        several.fence()
        for role, outcome in (("api", "accepted"), ("consumer", "stored")):
            scraped = worker_metrics(several, role)
            named = [
                labels["service_instance_id"] for m in scraped for name, labels, _ in m.samples if name == "target_info"
            ]
            assert named == instances(several, role)
            counted = f'bronze_source="vehicles", bronze_outcome="{outcome}"'
            records = {"bronze_source": "vehicles", "bronze_outcome": outcome}
            assert sum(sum(metrics.all("bronze_records_total", **records)) for metrics in scraped) == number + 1
            query = f'sum(bronze_records_total{{instance=~"{several.stack.instance(role)}-[0-9]+", {counted}}})'
            until(f"OTLP of {role} says the same", lambda q=query: several.value(q) == number + 1)  # type: ignore[misc]
        assert several.get("/metrics").status_code == 404


def test_a_killed_worker_is_replaced(several: System, mark: str) -> None:
    """While the others go on; a line in the log says so. Each accepted record is stored once. SIGTERM then ends all in
    time.
    """
    with several.queue(), several.running(several.role("api"), several.role("consumer")) as running:
        with load(several, mark) as sent:
            further(sent, 10)
            for role in ROLES:
                before = children(running[role].pid)
                assert len(before) == WORKERS
                subprocess.run(["kill", "-KILL", str(before[0])], check=True)
                further(sent, 10)
                until(
                    f"a worker of {role} is replaced",
                    lambda pid=running[role].pid, dead=before[0]: (  # type: ignore[misc]
                        len(now := children(pid)) == WORKERS and dead not in now
                    ),
                )
                until(f"all workers of {role} work", lambda role=role: ready(running[role]))  # type: ignore[misc]
                assert "worker 1 was ended by SIGKILL: starting another one" in several.log(role).read_text()
                assert before[1] in children(running[role].pid)
            further(sent, 10)
        several.fence()
        assert several.payloads(mark) == sorted(sent)
        for role in ROLES:
            pids = children(running[role].pid)
            running[role].signal(signal.SIGTERM)
            assert running[role].wait(STOP_S_MAX) == 0
            assert all(map(ended, pids))


def ready(process: Process) -> bool:
    try:
        process.program.ready()
    except NotReady:
        return False
    return True


@pytest.mark.parametrize("role", ROLES)
def test_no_worker_outlives_the_process_that_started_it(several: System, role: str) -> None:
    """Although that is killed by SIGKILL; it can be started again at once."""
    with several.queue(), several.running(several.role(role)) as running:
        pids = children(running[role].pid)
        assert len(pids) == WORKERS
        running[role].signal(signal.SIGKILL)
        until("all workers have ended", lambda: all(map(ended, pids)), STOP_S_MAX)
        running[role].restart()


def test_all_workers_take_an_edited_file_of_sources(several: System, tmp_path: Path) -> None:
    """On SIGHUP to the process that started them; the workers stay the same processes."""
    file = tmp_path / "own.toml"
    file.write_text(FIRST)
    roles = [several.role(role, BRONZE_SOURCES=str(file)) for role in ROLES]
    with several.queue(), several.running(*roles) as running:
        pids = {role: children(running[role].pid) for role in ROLES}
        file.write_text(SECOND)
        for role in ("consumer", "api"):
            running[role].signal(signal.SIGHUP)
            until(
                f"all workers of {role} start again",
                lambda role=role: several.log(role).read_text().count("SIGHUP: starting again") == WORKERS,  # type: ignore[misc]
            )
            until(f"all workers of {role} work", lambda role=role: ready(running[role]))  # type: ignore[misc]
        until("all workers of api know the new source", lambda: knows(several, "readings"))
        assert {role: children(running[role].pid) for role in ROLES} == pids


def knows(system: System, source: str) -> bool:
    """Whether each of ten answers, which any worker may give, is that of a worker that knows the source."""
    try:
        answers = [system.get(f"/v1/sources/{source}/schema").status_code for _ in range(10)]
    except httpx.TransportError:  # a worker that starts again closes its connections
        return False
    return set(answers) == {httpx.codes.OK}


@pytest.mark.parametrize("command", ["serve", "consume"])
def test_settings_that_cannot_work_end_all(command: str, system: System) -> None:
    """With the exit code 2, as of a single process: nothing is started again and again."""
    env = {**environment(), **system.role("api").env, "OTEL_TRACES_SAMPLER": "sometimes", "BRONZE_API_PORT": "0"}
    done = subprocess.run(
        [servers.executable("bronze"), command, "--workers", str(WORKERS)],
        env=env,
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert done.returncode == 2
    assert "OTEL_TRACES_SAMPLER: 'sometimes' is not supported" in done.stderr
