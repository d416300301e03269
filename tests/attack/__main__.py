"""`make attack`: sends what stopped the API to a system of its own, and measures what it costs, and costs others.

For each case, the API starts anew. Beside the hostile connections, /livez is asked and a small submission is sent, one
after the other. At last, 64 hostile connections of all kinds are kept up beside a polite sender; the exit code is 1 if
its p99 is over 2 s, or if one of its submissions is not stored.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from local.builds import REPOSITORY, build_all
from local.programs import LOOPBACK, Process, Program
from local.stack import Ports, Stack
from tests.attack.fuzzing import fuzz
from tests.attack.inputs import ANSWER_S_MAX, ATTACKS, MIB, Attack, Sent, connect_all, keep_all_up

STATE = REPOSITORY / ".local" / "attack"
#: Declares what `--fuzz` sends.
FUZZ_SOURCES = REPOSITORY / "tests" / "fuzz" / "sources.toml"
HOSTILE = 64
P99_S_MAX = 2.0
#: How long a case is measured at least, and how long connections that get no answer are looked at.
WATCH_S = 3.0


@dataclass
class Others:
    """The requests of a polite client, one after the other, until it is stopped."""

    port: int
    livez_s: list[float] = field(default_factory=list)
    post_s: list[float] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=f"http://{LOOPBACK}:{self.port}", timeout=200, trust_env=False) as client:
            while not self.stop.wait(0.02):
                for times_s, ask in ((self.livez_s, self._livez), (self.post_s, self._post)):
                    start_s = time.monotonic()
                    try:
                        ask(client)
                    except httpx.HTTPError as error:
                        self.failed[type(error).__name__] += 1
                    times_s.append(time.monotonic() - start_s)

    def _livez(self, client: httpx.Client) -> None:
        answer = client.get("/livez")
        if answer.status_code != 200:
            self.failed[str(answer.status_code)] += 1

    def _post(self, client: httpx.Client) -> None:
        answer = client.post("/v1/ingest/vehicles", json={"vehicle_id": "polite"})
        if answer.status_code == 202:
            self.accepted.append(answer.json()["submission_id"])
        else:
            self.failed[str(answer.status_code)] += 1


@dataclass(frozen=True)
class Measured:
    """A case: memory and CPU of the API and its readers, answers, and the latency of others."""

    name: str
    answers: dict[str, int]
    seconds: float
    memory_mib: float
    cpu_s: float
    livez_s_max: float
    post_s_max: float
    failed: dict[str, int]


@contextmanager
def running(stack: Stack, *programs: Program) -> Iterator[list[Process]]:
    started = [Process(program, stack.root / "logs" / f"{program.name}.log") for program in programs]
    try:
        for process in started:
            process.__enter__()
        for process in started:
            process.wait_ready()
        yield started
    finally:
        for process in reversed(started):
            process.__exit__(None, None, None)


@contextmanager
def asked(port: int) -> Iterator[Others]:
    others = Others(port)
    thread = threading.Thread(target=others.run)
    thread.start()
    try:
        yield others
    finally:
        others.stop.set()
        thread.join()


def p99(times_s: Sequence[float]) -> float:
    return sorted(times_s)[min(len(times_s) - 1, int(len(times_s) * 0.99))]


def usage(pid: int) -> tuple[float, float]:
    """The memory in MiB and the CPU time in seconds of a process and its children."""
    process = psutil.Process(pid)
    memory = cpu_s = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            memory += each.memory_info().rss / MIB
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system + (times.children_user + times.children_system if each == process else 0)
    return memory, cpu_s


def measure(attack: Attack, stack: Stack, api: Program) -> Measured:
    spawn = multiprocessing.get_context("spawn")
    with running(stack, api) as (process,):
        port = stack.ports.api
        answers = spawn.Queue()
        hostile = spawn.Process(
            target=connect_all, args=(attack.name, port, time.monotonic() + ANSWER_S_MAX, answers), daemon=True
        )
        before_mib, before_s = usage(process.pid)
        peak_mib = before_mib
        start_s = time.monotonic()
        sent: list[Sent] = []
        with asked(port) as others:
            hostile.start()
            while hostile.is_alive() or time.monotonic() - start_s < WATCH_S:
                peak_mib = max(peak_mib, usage(process.pid)[0])
                while not answers.empty():
                    sent.append(answers.get())
                time.sleep(0.02)
            _, after_s = usage(process.pid)
        while not answers.empty():
            sent.append(answers.get())
        return Measured(
            attack.name,
            dict(Counter(each.status for each in sent)),
            max((each.seconds for each in sent), default=0.0),
            peak_mib - before_mib,
            after_s - before_s,
            max(others.livez_s),
            max(others.post_s),
            dict(others.failed),
        )


def mix(stack: Stack, api: Program, seconds: float) -> dict[str, Any]:
    """64 hostile connections beside a polite sender."""
    spawn = multiprocessing.get_context("spawn")
    with running(stack, api) as (process,):
        port = stack.ports.api
        end_s = time.monotonic() + seconds
        # two processes: the senders themselves need a core
        hostile = [spawn.Process(target=keep_all_up, args=(port, HOSTILE // 2, end_s), daemon=True) for _ in range(2)]
        before_mib, before_s = usage(process.pid)
        peak_mib = before_mib
        with asked(port) as others:
            for each in hostile:
                each.start()
            while time.monotonic() < end_s:
                peak_mib = max(peak_mib, usage(process.pid)[0])
                time.sleep(0.05)
            _, after_s = usage(process.pid)
        for each in hostile:
            each.kill()
            each.join()
        return {
            "connections": HOSTILE,
            "seconds": seconds,
            "requests": len(others.post_s),
            "post_s_p50": sorted(others.post_s)[len(others.post_s) // 2],
            "post_s_p99": p99(others.post_s),
            "post_s_max": max(others.post_s),
            "livez_s_p99": p99(others.livez_s),
            "memory_mib": peak_mib - before_mib,
            "cpu_s": after_s - before_s,
            "failed": dict(others.failed),
            "accepted": len(others.accepted),
            "not_stored": not_stored(port, others.accepted),
        }


def not_stored(port: int, submissions: Sequence[str]) -> list[str]:
    """The accepted submissions that are not in the bucket after a minute."""
    deadline_s = time.monotonic() + 60
    missing = list(submissions)
    with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=30, trust_env=False) as client:
        while missing and time.monotonic() < deadline_s:
            missing = [name for name in missing if client.get(f"/v1/submissions/{name}").json()["status"] != "stored"]
    return missing


def report(rows: Sequence[Measured]) -> str:
    lines = [
        "| input | answers | after | memory | CPU | /livez of others | small POST of others |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {', '.join(f'{count} x {status}' for status, count in row.answers.items())} "
            f"| {row.seconds:.1f} s | +{row.memory_mib:.0f} MiB | {row.cpu_s:.1f} s | {row.livez_s_max:.2f} s "
            f"| {row.post_s_max:.2f} s{f', failed: {row.failed}' if row.failed else ''} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the cases")
    parser.add_argument("--seconds", type=float, default=60, help="how long the 64 connections are kept up; 0: not")
    parser.add_argument("--bronze", help="the command `bronze` of another version, to compare with")
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="instead: N damaged requests of each format")
    parser.add_argument("--seed", type=int, default=1, help="of the damaged requests")
    args = parser.parse_args()
    shutil.rmtree(STATE, ignore_errors=True)
    if args.fuzz:
        os.environ["BRONZE_SOURCES"] = str(FUZZ_SOURCES)
    stack = Stack.create(STATE, Ports.free(), build_all())
    quiet = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("METRICS", "TRACES", "LOGS")}
    roles = [replace(role, env={**role.env, **quiet, "BRONZE_FLUSH_AGE_S": "1"}) for role in stack.roles]
    if args.bronze:
        roles = [replace(role, command=(str(Path(args.bronze).resolve()), *role.command[1:])) for role in roles]
    if args.fuzz:
        with running(stack, *stack.servers[:2]), running(stack, *roles) as (process, _):
            return fuzz(stack, process.pid, args.fuzz, args.seed, usage)
    api, consumer = roles
    rows: list[Measured] = []
    mixed: dict[str, Any] = {}
    with running(stack, *stack.servers[:2]):
        # the API makes the streams, which the consumer then reads
        with running(stack, api, consumer):
            pass
        for attack in ATTACKS.values():
            if args.only in attack.name:
                rows.append(measure(attack, stack, api))
                print(report(rows[-1:]).splitlines()[-1], flush=True)
        if args.seconds:
            with running(stack, consumer):
                mixed = mix(stack, api, args.seconds)
    print(report(rows))
    print(json.dumps(mixed, indent=2))
    (STATE / "attack.json").write_text(json.dumps({"cases": [vars(row) for row in rows], "mixed": mixed}, indent=2))
    return 1 if mixed and (mixed["post_s_p99"] > P99_S_MAX or mixed["not_stored"]) else 0


if __name__ == "__main__":
    sys.exit(main())
