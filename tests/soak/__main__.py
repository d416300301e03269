"""A system of its own under a steady load and faults, for hours: `make soak H=2`.

It grows nowhere, and what was accepted is stored exactly once. The load is half of what the machine takes, which is
measured first, unless a rate is given. Processes are killed and paused in an order from a seed. Ctrl-C ends the run,
which is then judged by what there is. The samples, the result and the plots are in .local/soak/; a run of an hour or
more also writes docs/soak.md.

The exit code is 1 if a record is lost or doubled, a request was refused for good, a process ended by itself, or a
series grows by more than its bound.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT, default_int_handler, signal
from typing import Any

from local.builds import REPOSITORY
from local.machine import describe
from local.servers import executable
from local.watch import leave_nothing
from tests.prove import service
from tests.soak import report
from tests.soak.load import Load
from tests.soak.run import Faults, Probe, Running, Sample, compare, sample, settle, stored, table_rows
from tests.soak.slopes import Verdict

FOLDER = REPOSITORY / ".local" / "soak"
SAMPLES, RESULT = "samples.jsonl", "result.json"
DOCS = REPOSITORY / "docs"
CALIBRATE_S = 20.0
LOAD_SHARE = 0.5
#: A shorter run has as many samples and faults as this many.
SAMPLE_S_MAX, SAMPLES_LEAST = 30.0, 100
FAULT_S_MAX, FAULTS_LEAST = 600.0, 12


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {text}\n")
    sys.stdout.flush()


def run(folder: Path, seconds: float, seed: int, rate: float | None, fault_s: float) -> dict[str, Any]:
    """Runs and judges it; returns the result. The samples are in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    samples: list[Sample] = []
    interrupted = threading.Event()
    say("starting the system")
    with Running(folder / "system", say) as running:
        load = Load(running.url, seed)
        if rate is None:
            say(f"measuring for {CALIBRATE_S:g} s what the machine takes")
            rate = load.calibrate(CALIBRATE_S) * LOAD_SHARE
        say(f"{rate:.3g} submissions/s for {seconds / 3600:g} h, a fault each {fault_s:g} s from seed {seed}")
        began, load_of_machine = time.time(), describe()
        with (
            Faults(running, seed, fault_s) as faults,
            Probe(load, running.url) as probe,
            load.running(rate),
            (folder / SAMPLES).open("w") as file,
        ):
            # a flag, no KeyboardInterrupt: asyncio cancels what is awaited for a sample, and nats-py may ignore that
            handler = signal(SIGINT, lambda *_: interrupted.set())
            interval_s = min(SAMPLE_S_MAX, seconds / SAMPLES_LEAST)
            while (now := time.time() - began) < seconds and not (faults.problem or interrupted.is_set()):
                interrupted.wait(max(0.0, min((len(samples) + 1) * interval_s, seconds) - now))
                samples.append(sample(running, load, probe, began))
                file.write(json.dumps(samples[-1]) + "\n")
                file.flush()
                say(progress(samples[-1], seconds, faults))
            signal(SIGINT, handler)
            if interrupted.is_set():
                say("interrupted: judging what there is")
        say("waiting until everything is stored")
        settle(running.system, load.account)
        found, rows, objects = stored(running.system, len(load.account.accepted))
        records = compare(load.account, found)
        in_tables = table_rows(running, rows)
    judged = report.judged(samples)
    problems = [
        *load.account.problems,
        *running.ended,
        *([faults.problem] if faults.problem else []),
        *(f"{records[what]} records are {what}" for what in ("lost", "doubled") if records[what]),
        *([f"the tables have {in_tables}, the bucket {rows}"] if in_tables != rows else []),
        *(f"{one.series.title} grows" for one in judged if one.verdict is Verdict.GROWS),
    ]
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "service": service(),
        "machine": load_of_machine,
        "seconds": round(samples[-1]["at"]) if samples else 0,
        "interrupted": interrupted.is_set(),
        "seed": seed,
        "rate": round(rate, 3),
        "records": records,
        "objects": objects,
        "answers": dict(load.account.statuses),
        "faults": [{"at": round(at - began, 1), "what": str(fault)} for at, fault in faults.happened],
        "series": report.as_json(judged),
        "problems": problems,
    }


def progress(newest: Sample, seconds: float, faults: Faults) -> str:
    shown = (
        ("api memory, MB", "API {:.0f} MB"),
        ("consumer memory, MB", "consumer {:.0f} MB"),
        ("table memory, MB", "table {:.0f} MB"),
        ("queue messages", "{:.0f} messages"),
        ("catalog entries", "{:.0f} objects"),
        ("accept p99, s", "accept p99 {:.3f} s"),
        ("store p99, s", "store p99 {:.1f} s"),
        ("queryable p95, s", "queryable p95 {:.1f} s"),
    )
    parts = [f"{newest['at'] / seconds:4.0%}", f"{newest['submissions']} submissions"]
    parts += [text.format(newest[name]) for name, text in shown if name in newest]
    return ", ".join([*parts, f"{len(faults.happened)} faults"])


def show(result: Mapping[str, Any]) -> None:
    say(f"{result['seconds']} s, {len(result['faults'])} faults, {result['objects']:,} objects")
    say(f"records: {report.counts(result)}")
    sys.stdout.write(report.table(result["series"]) + "\n")
    for problem in result["problems"]:
        say(f"PROBLEM: {problem}")


def plot(folder: Path) -> bool:
    """Draws the plots, in an environment of their own: with NumPy installed, PyArrow would import it in each role."""
    command = [executable("uv"), "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    command += ["--with-requirements", str(REPOSITORY / "requirements-plots.lock")]
    command += ["python", "-m", "tests.soak.plots", str(folder)]
    if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
        say(f"the plots could not be drawn; again: {' '.join(command)}")
        return False
    say(f"the plots are in {folder}")
    return True


def publish(folder: Path, docs: Path = DOCS) -> None:
    """Writes the page of the documentation from a result and its plots."""
    text = (folder / RESULT).read_text()
    (docs / "soak.json").write_text(text)
    (docs / "soak.md").write_text(report.page(json.loads(text)))
    for picture in report.PICTURES:
        shutil.copy(folder / f"soak-{picture}.svg", docs / "images")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=2, help="the duration (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of load and faults (%(default)s)")
    parser.add_argument("--rate", type=float, help="submissions per second (half of what the machine takes)")
    parser.add_argument("--fault-s", type=float, help="seconds from one fault to the next, 0: none (at most 600)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="replaced by what the run writes (.local/soak)")
    parser.add_argument(
        "--note", default="", help="what else the page says of the run, such as what else the machine did"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/soak.md also after a run of less than an hour")
    args = parser.parse_args(arguments)
    seconds = args.hours * 3600
    fault_s = min(FAULT_S_MAX, seconds / FAULTS_LEAST) if args.fault_s is None else args.fault_s
    given = {"H": args.hours, "RATE": args.rate, "FAULT_S": args.fault_s, "SEED": args.seed}
    command = " ".join(["make soak", *(f"{name}={value:g}" for name, value in given.items() if value is not None)])
    signal(SIGINT, default_int_handler)  # a shell starts what runs in the background without it
    try:
        with leave_nothing():
            result = {"command": command, "note": args.note, **run(args.folder, seconds, args.seed, args.rate, fault_s)}
            (args.folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
            show(result)
            if plot(args.folder) and (args.docs or result["seconds"] >= report.TELLING_S_MIN):
                publish(args.folder)
    except KeyboardInterrupt:
        return 130
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
