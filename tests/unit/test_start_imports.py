"""The start of a role imports what the role needs: each library that it does not need takes CPU until it is ready."""

import os
import subprocess
import sys

import pytest

#: Runs `bronze` until a role would enter its event loop, and prints the imported modules instead.
SHOW_IMPORTS = """
import sys, uvloop
def show(run):
    run.close()
    print(*sys.modules)
    return 0
uvloop.run = show
sys.argv = ["bronze", sys.argv[1]]
from bronze.__main__ import main
main()
"""

#: What only commands need, or a process to which a certain request comes.
OF_COMMANDS = {"bronze.admin.keys_command", "bronze.wiring.commands", "joserfc", "markdown_it"}
OF_THE_API = {"fastapi", "uvicorn", "jinja2", "cryptography", "bronze.wiring.api"}
#: httpx imports click, pygments and rich, for a command of its own.
OF_HTTP_CLIENTS = {"httpx", "click", "pygments", "rich"}


@pytest.mark.parametrize(
    ("role", "unneeded"),
    [
        ("serve", OF_COMMANDS | OF_HTTP_CLIENTS - {"click"} | {"bronze.publisher"}),  # uvicorn imports click
        ("consume", OF_COMMANDS | OF_THE_API | OF_HTTP_CLIENTS | {"bronze.publisher"}),
        ("canary", OF_COMMANDS | OF_THE_API),  # it sends by the publisher
    ],
)
def test_a_role_does_not_import_the_libraries_of_others(role: str, unneeded: set[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_IMPORTS, role],
        env={name: value for name, value in os.environ.items() if not name.startswith(("BRONZE_", "OTEL_", "COV_"))},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(shown.stdout.split())
    assert "bronze.telemetry.sdk" in imported
    assert imported & unneeded == set()


def test_garbage_is_collected_again_after_the_start() -> None:
    code = (
        "import gc; from bronze import process; process.pause_collection(); assert not gc.isenabled();"
        "process.freeze_startup_objects(); assert gc.isenabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
