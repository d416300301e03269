"""`bronze publish --watch` sends each file that arrives once, even if the watcher is killed."""

import json
import random
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

from local.machine import limit_s
from tests.system.blackbox import System, ndjson, until, vehicles

KILLS = 10
FILE_RECORDS = 10
FILE_SUBMISSIONS = 4
#: Several submissions per file, so that a kill often happens between two of them.
OPTIONS = ("--records", "3", "--settle", "0.2", "--parallel", "2")


@contextmanager
def watcher(system: System, directory: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    process = system.publisher("vehicles", "--watch", str(directory), *OPTIONS, *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, errors = process.communicate(timeout=limit_s(15))
    return process.returncode, out, errors


def finished_files(directory: Path) -> set[str]:
    """The files in the watcher's state, which were sent or refused."""
    state = f"file:{directory / '.bronze' / 'vehicles.sqlite'}?mode=ro"
    try:
        with closing(sqlite3.connect(state, uri=True)) as known:
            return {path for (path,) in known.execute("SELECT path FROM files")}
    except sqlite3.OperationalError:  # the state does not exist yet
        return set()


def sent(report: Path) -> int:
    return report.read_bytes().count(b"\n") if report.exists() else 0


def arrive(directory: Path, mark: str, number: int) -> list[bytes]:
    """Writes a file. Files with an even number are written in place; the others are renamed when they are complete."""
    records = vehicles(f"{mark}-{number}", FILE_RECORDS)
    file = directory / f"{number}.ndjson"
    written = file.with_suffix(".part") if number % 2 else file
    written.write_bytes(ndjson(records))
    written.rename(file)
    return records


def test_a_watcher_killed_ten_times_sends_each_record_once(system: System, mark: str, tmp_path: Path) -> None:
    """The watcher is killed with SIGKILL in the middle of files while others arrive, and started again: each record of
    each file is in the bucket exactly once. At the end SIGTERM stops it with exit code 0.
    """
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    dice = random.Random(mark)
    numbers, expected = count(), list[bytes]()
    for kill in range(KILLS):
        report, enough = tmp_path / f"report-{kill}", dice.randint(1, 2 * FILE_SUBMISSIONS)
        expected += arrive(inbox, mark, next(numbers))
        with watcher(system, inbox, "--report", str(report)) as process:
            expected += [record for _ in range(2) for record in arrive(inbox, mark, next(numbers))]
            until(f"{enough} submissions", lambda at=report, n=enough: sent(at) >= n)  # type: ignore[misc]
            process.kill()
            expected += arrive(inbox, mark, next(numbers))
    with watcher(system, inbox) as process:
        until("every file is sent", lambda: finished_files(inbox) == {file.name for file in inbox.glob("*.ndjson")})
        code, _, errors = stop(process)
    assert code == 0, errors
    system.fence()
    assert system.payloads(mark) == sorted(expected)


def test_a_refused_file_does_not_stop_the_others(system: System, mark: str, tmp_path: Path) -> None:
    """It is reported, also by the exit code; when it is corrected without moving it, it is sent. A second watcher of
    the directory is an error, and a restarted watcher does not send files again.
    """
    good, bad = vehicles(mark, 4), vehicles(f"{mark}-bad", 4)
    (tmp_path / "bad.ndjson").write_bytes(ndjson(bad[:3]) + b'{"vehicle_id": 5}\n')
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "good.ndjson").write_bytes(ndjson(good))
    with watcher(system, tmp_path, "--json") as process:
        until("each file is sent or refused", lambda: len(finished_files(tmp_path)) == 3)
        second = system.publisher("vehicles", "--watch", str(tmp_path))
        _, errors = second.communicate(timeout=limit_s(60))
        assert second.returncode == 2
        assert f"process {process.pid} already watches" in errors
        code, out, errors = stop(process)
    assert code == 1
    refused = {Path(file).name: reason for file, reason in json.loads(out)["refused"].items()}
    assert set(refused) == {"bad.ndjson", "torn.parquet"}
    assert "bad.ndjson, line 4: 422" in refused["bad.ndjson"]
    (tmp_path / "bad.ndjson").write_bytes(ndjson(bad[3:]))
    report = tmp_path / "report"
    with watcher(system, tmp_path, "--json", "--report", str(report)) as process:
        until("the corrected file is sent", lambda: sent(report))
        code, out, _ = stop(process, signal.SIGINT)
    assert (code, json.loads(out)["files"]) == (0, 1)
    system.fence()
    assert system.payloads(mark) == sorted([*good, *bad])
