"""Ctrl-C ends each command that waits for a server quietly: with exit code 130 and no traceback."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from local.machine import limit_s

CONNECT_S_MAX = 60
#: Less than the time that any request may take: a command must not wait for its request.
STOP_S_MAX = 2


@pytest.mark.parametrize(
    "command",
    [
        ["quarantine", "list"],
        ["quarantine", "export", "--submission", "s"],
        ["quarantine", "replay", "--yes", "--submission", "s"],
        ["objects", "missing"],
        ["objects", "acknowledge", "--yes", "--all-missing", "--reason", "lost"],
        ["lineage", "2013-02-08-UA-1018-EWR-IAH"],
        ["verify"],
        ["lanes", "2", "--yes"],
        ["catalog", "rebuild", "--yes"],
        ["publish", "vehicles", __file__, "--format", "ndjson", "--dry-run"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_ctrl_c_is_quiet(command: Sequence[str]) -> None:
    assert interrupt(command) == (130, "", "")


def test_ctrl_c_says_that_work_is_left_once_a_change_has_begun() -> None:
    """`bronze lanes` and `catalog rebuild` change something step by step."""
    code = """
import asyncio, sys
from bronze import __main__ as command
from bronze.admin.confirmation import unfinished_if_interrupted
async def change():
    with unfinished_if_interrupted("lanes"):
        print("begun", flush=True)
        await asyncio.Event().wait()
command.run = lambda args, settings: asyncio.run(change())
sys.argv = ["bronze", "lanes", "2", "--yes"]
command.main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=limit_s(STOP_S_MAX))
        finally:
            process.kill()
    told = "bronze lanes: interrupted. Run the command again to finish the work\n"
    assert (process.returncode, err) == (130, told)


def test_ctrl_c_is_how_to_end_a_command_that_follows() -> None:
    assert interrupt(["lineage", "follow"]) == (0, "", "")


def test_a_closed_pipe_is_quiet() -> None:
    """As after `| head`: neither the command's own output nor its log prints a traceback."""
    code = """
import logging, os, sys
reading, writing = os.pipe()
os.dup2(writing, 1)
os.close(reading)
from bronze import __main__ as command
from bronze.settings import LogFormat
from bronze.telemetry import logs
logs.configure(LogFormat.CONSOLE, "INFO", {})
logging.getLogger("bronze").info("a record")
def run(args, settings):
    print("x" * 100_000, flush=True)
command.run = run
sys.argv = ["bronze", "objects", "missing"]
command.main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def interrupt(command: Sequence[str]) -> tuple[int, str, str]:
    """The exit code and the output of a command that is interrupted while it waits for a server's answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(limit_s(CONNECT_S_MAX))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "-",
            "AWS_ENDPOINT_URL_S3": f"http://{address}",
            "AWS_SECRET_ACCESS_KEY": "-",
            "BRONZE_API_URL": f"http://{address}",
            "BRONZE_NATS_URL": f"nats://{address}",
            "OTEL_SDK_DISABLED": "true",
        }
        with subprocess.Popen(
            [sys.executable, "-m", "bronze", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                connection, _ = silent.accept()
                with connection:
                    process.send_signal(signal.SIGINT)
                    out, err = process.communicate(timeout=limit_s(STOP_S_MAX))
            finally:
                process.kill()
    return process.returncode, out, err
