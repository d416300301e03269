"""The supervisor behind `make up` and `make demo`, with a real supervisord."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local.programs import Program
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
