"""The supervisor behind `make up` and `make demo`, with a real supervisord."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local.programs import LocalError, Program
from local.supervision import Supervisor
from tests.system.blackbox import until


@pytest.mark.parametrize(("restarts", "state"), [(True, "RUNNING"), (False, "EXITED")])
def test_what_dies_is_started_again(tmp_path: Path, restarts: bool, state: str) -> None:  # noqa: FBT001
    """Under `make up` a program that dies runs again; a demo shows that it died. Nothing is left after a shutdown."""
    pids = tmp_path / "pids"
    code = f"import os, time; print(os.getpid(), file=open({str(pids)!r}, 'a', 1)); time.sleep(60)"
    sleeper = Program("sleeper", (sys.executable, "-c", code), {}, lambda: None)

    def started() -> list[int]:
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    supervisor = Supervisor(tmp_path)
    supervisor.launch([sleeper], restarts=restarts)
    try:
        supervisor.start(sleeper)
        until("the sleeper runs", lambda: started() and supervisor.state("sleeper").state == "RUNNING")
        supervisor.start(sleeper)  # runs already
        os.kill(started()[0], signal.SIGKILL)
        until(f"it is {state}", lambda: len(started()) == 1 + restarts and supervisor.state("sleeper").state == state)
    finally:
        supervisor.shutdown()
    assert not supervisor.runs()
    with pytest.raises(ProcessLookupError):
        os.kill(started()[-1], 0)


def test_one_program_can_be_stopped_and_started_by_hand(tmp_path: Path) -> None:
    """As docs/operations.md says: with the supervisor's own command, and only that program."""
    sleepers = [Program(name, (sys.executable, "-c", "import time; time.sleep(60)"), {}, lambda: None) for name in "ab"]

    def control(*words: str) -> None:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(tmp_path / "supervisord.conf"), *words]
        subprocess.run(command, check=True, capture_output=True)

    supervisor = Supervisor(tmp_path)
    supervisor.launch(sleepers, restarts=True)
    try:
        for sleeper in sleepers:
            supervisor.start(sleeper)
        for sleeper in sleepers:
            until("both run", lambda name=sleeper.name: supervisor.state(name).state == "RUNNING")  # type: ignore[misc]
        control("stop", "a")
        assert [supervisor.state(name).state for name in "ab"] == ["STOPPED", "RUNNING"]
        control("start", "a")
        assert [supervisor.state(name).state for name in "ab"] == ["RUNNING", "RUNNING"]
        control("restart", "b")
        assert supervisor.state("b").state == "RUNNING"
    finally:
        supervisor.shutdown()


def test_what_programs_write_is_for_this_user_alone(tmp_path: Path) -> None:
    """Files, folders and logs, whatever the umask of the shell is."""
    code = "import os; os.mkdir('data'); open('data/file', 'w').write('x'); print('up', flush=True)"
    program = Program("writer", (sys.executable, "-c", f"{code}; import time; time.sleep(60)"), {}, lambda: None)
    before = os.umask(0)
    supervisor = Supervisor(tmp_path)
    try:
        supervisor.launch([program], restarts=False)
        supervisor.start(program)
        log = supervisor.log("writer")
        until("it has written", lambda: log.exists() and log.read_text() == "up\n")
        modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "data", tmp_path / "data" / "file", log)]
    finally:
        os.umask(before)
        supervisor.shutdown()
    assert modes == [0o700, 0o600, 0o600]


def test_a_shutdown_waits_for_one_that_is_under_way(tmp_path: Path) -> None:
    """`make down` while a `make up` that was interrupted stops everything."""
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), exit())); print(flush=True)"
    slow = Program("slow", (sys.executable, "-c", f"{code}; time.sleep(60)"), {}, lambda: None)
    supervisor = Supervisor(tmp_path)
    supervisor.launch([slow], restarts=False)
    try:
        supervisor.start(slow)
        until("it has its handler", lambda: supervisor.log("slow").exists() and supervisor.log("slow").read_text())
        supervisor._call("shutdown")
    finally:
        supervisor.shutdown()
    assert not supervisor.runs()


def test_a_program_that_ends_again_and_again_is_named(tmp_path: Path) -> None:
    """It works for a moment after each start, so a probe alone finds no fault: its log's end says why it ends."""
    code = "import time; print('the lanes differ', flush=True); time.sleep(1.2); raise SystemExit(2)"
    looping = Program("looping", (sys.executable, "-c", code), {}, lambda: None)
    steady = Program("steady", (sys.executable, "-c", "import time; time.sleep(60)"), {}, lambda: None)
    supervisor = Supervisor(tmp_path)
    supervisor.launch([steady, looping], restarts=True)
    try:
        for program in (steady, looping):
            supervisor.start(program)
            supervisor.wait_ready(program)
        supervisor.wait_steady([steady])
        with pytest.raises(LocalError, match=r"looping ended during its start(.|\n)*the lanes differ"):
            supervisor.wait_steady([steady, looping])
    finally:
        supervisor.shutdown()


def test_settings_of_the_first_start_are_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in a program's own variables any more is gone after its next start."""
    monkeypatch.setenv("BRONZE_LANES", "2")
    names = "[name for name in ('BRONZE_LANES', 'BRONZE_LOG_LEVEL') if name in os.environ]"
    code = f"import os, time; print(*{names}, flush=True); time.sleep(60)"
    program = Program("role", (sys.executable, "-c", code), {}, lambda: None, env={"BRONZE_LOG_LEVEL": "DEBUG"})
    supervisor = Supervisor(tmp_path)
    supervisor.launch([program], restarts=False)
    try:
        supervisor.start(program)
        log = supervisor.log("role")
        until("it has written", lambda: log.exists() and log.read_text().endswith("\n"))
    finally:
        supervisor.shutdown()
    assert log.read_text() == "BRONZE_LOG_LEVEL\n"
