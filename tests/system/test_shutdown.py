"""A stop under load is quick and successful, and no accepted record is lost or doubled."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from local.machine import limit_s
from local.programs import LOOPBACK, Process
from tests.system.blackbox import STOP_S_MAX, System, ndjson, reported, until, vehicles

PUBLISHERS = 2
RECORDS = 1000
#: Small submissions, so that there are many.
BATCH = ("--records", "5")


def stops(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Sends the signal and checks that the process ends in time with exit code 0."""
    process.signal(number)
    try:
        code = process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{process.program.name} runs {STOP_S_MAX:g} s after {number.name}")
    assert code == 0


def accepted(report: Path) -> int:
    return len(reported(report)) if report.exists() else 0


@contextmanager
def load(system: System, mark: str, folder: Path) -> Iterator[tuple[list[Path], list[bytes]]]:
    """Runs publishers in the context; returns their reports, and all records that they get. At the end, each has sent
    all its records.
    """
    reports = [folder / f"{number}.report" for number in range(PUBLISHERS)]
    started = [system.publisher("vehicles", "-", *BATCH, "--report", str(report)) for report in reports]
    given: list[bytes] = []
    enough = threading.Event()

    def feed(name: str, publisher: "subprocess.Popen[str]") -> None:
        assert publisher.stdin
        for number in count():
            if enough.is_set():
                return
            (record,) = vehicles(f"{name}-{number}")
            given.append(record)
            publisher.stdin.write(record.decode() + "\n")

    feeding = [
        threading.Thread(target=feed, args=(f"{mark}-{number}", publisher), daemon=True)
        for number, publisher in enumerate(started)
    ]
    try:
        for thread in feeding:
            thread.start()
        yield reports, given
        enough.set()
        for thread, publisher in zip(feeding, started, strict=True):
            thread.join()
            output = publisher.communicate(timeout=limit_s(60))
            assert publisher.returncode == 0, output
    finally:
        enough.set()
        for publisher in started:
            publisher.kill()
            publisher.communicate()


def test_a_stop_under_load_loses_nothing(branch: System, mark: str, tmp_path: Path) -> None:
    """While publishers send, API and consumer end within 10 s of SIGTERM with exit code 0. After a restart they
    continue, and each record of each publisher is in the bucket exactly once.
    """
    with branch.queue(), branch.running(branch.role("api"), branch.role("consumer")) as roles:
        with load(branch, mark, tmp_path) as (reports, given):

            def further(submissions: int) -> None:
                now = [accepted(report) for report in reports]
                until(
                    "each publisher goes on",
                    lambda: all(accepted(r) >= n + submissions for r, n in zip(reports, now, strict=True)),
                )

            further(5)
            stops(roles["api"])
            roles["api"].restart()
            further(5)
            stops(roles["consumer"])
            further(5)  # without a consumer
            roles["consumer"].restart()
        branch.fence()
        assert branch.payloads(mark) == sorted(given)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_publisher_continues_where_it_stopped(
    number: signal.Signals, code: int, system: System, mark: str, tmp_path: Path
) -> None:
    """Ctrl-C or SIGTERM ends a publisher within 10 s with the exit code of the signal. It names the publish run; the
    same files sent again with it add the missing records, so each record is stored exactly once.
    """
    file, report = tmp_path / "fleet.ndjson", tmp_path / "report"
    file.write_bytes(ndjson(vehicles(mark, RECORDS)))
    command = ("vehicles", str(file), *BATCH, "--run", mark, "--report", str(report))
    publisher = system.publisher(*command)
    try:
        until("the publisher is at work", lambda: accepted(report) >= 5)
        publisher.send_signal(number)
        _, errors = publisher.communicate(timeout=limit_s(STOP_S_MAX))
    finally:
        publisher.kill()
    assert publisher.returncode == code
    assert f"--run {mark}" in errors
    assert accepted(report) * 5 < RECORDS
    second = system.publisher(*command)
    output = second.communicate(timeout=limit_s(60))
    assert second.returncode == 0, output
    system.fence()
    assert system.payloads(mark) == sorted(vehicles(mark, RECORDS))


def test_simulate_stops(system: System) -> None:
    """`bronze simulate` ends within 10 s of SIGTERM with exit code 0."""
    with system.running(system.role("publisher")) as roles:
        until(
            "it has sent something", lambda: sum(system.metrics("publisher").all("bronze_publisher_submissions_total"))
        )
        stops(roles["publisher"])


# --- a server that does not answer does not delay a stop


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server((LOOPBACK, 0), backlog=256) as listener:
        yield listener


def url(listener: socket.socket) -> str:
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}"


def test_a_body_without_an_end_does_not_delay_a_stop(branch: System, mark: str, silent: socket.socket) -> None:
    """With a client that never ends its body and a collector that never answers, the API still ends in time, and
    nothing of that body is stored. The client gets a 503, after which clients send a request again.
    """
    request = (
        b"POST /v1/ingest/vehicles HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        b"Content-Length: 1000000\r\n\r\n" + ndjson(vehicles(mark))
    )
    roles = branch.role("api", OTEL_EXPORTER_OTLP_ENDPOINT=url(silent)), branch.role("consumer")
    with branch.queue(), branch.running(*roles) as processes:
        with socket.create_connection((LOOPBACK, branch.stack.ports.api)) as client:
            client.sendall(request)
            until(
                "the request is under way",
                lambda: branch.metrics("api").sum("http_server_active_requests", http_request_method="POST"),
            )
            stops(processes["api"])
            head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body)["type"].endswith("/outcome-unknown")
        with branch.running(branch.role("api")):
            branch.fence()
            assert branch.payloads(mark) == []


def at_work(system: System, role: str) -> None:
    """Waits until a role has finished its start."""
    if role == "consumer":
        until("the consumer tends its lanes", lambda: system.metrics("consumer").all("bronze_lane_position"))


@pytest.mark.parametrize("role", ["api", "consumer"])
def test_a_queue_that_does_not_answer_does_not_delay_a_stop(role: str, branch: System) -> None:
    """Although the queue is frozen, the role ends in time."""
    with branch.queue() as queue, branch.running(branch.role(role)) as processes:
        at_work(branch, role)
        queue.signal(signal.SIGSTOP)
        try:
            stops(processes[role])
        finally:
            queue.signal(signal.SIGCONT)


@pytest.mark.parametrize("role", ["api", "consumer"])
def test_a_bucket_that_does_not_answer_does_not_delay_a_stop(role: str, branch: System, silent: socket.socket) -> None:
    """Although the bucket never answers a request, the role ends in time."""
    program = branch.role(role, AWS_ENDPOINT_URL_S3=url(silent), BRONZE_CREATE_ONLY_MISSING="true")
    with branch.queue(), branch.running(program) as processes:  # the API has sent a request: its readiness probe does
        at_work(branch, role)
        with silent.accept()[0]:
            stops(processes[role])


def test_a_stop_during_the_start_ends_the_role(branch: System) -> None:
    """A consumer that still waits for an unavailable queue ends in time, too."""
    with branch.running(branch.role("consumer")) as processes:  # its `/livez` already answers
        stops(processes["consumer"])
