"""The examples of docs/api.md run as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from tests.system.blackbox import System

GUIDE = REPOSITORY / "docs" / "api.md"
MARKED = re.compile(r"<!-- test: (\w+) -->\s*```(sh|python)\n(.*?)```", re.DOTALL)
EXAMPLES = {name: (language, code) for name, language, code in MARKED.findall(GUIDE.read_text(encoding="utf-8"))}
#: The output of each example, as far as it is always the same.
PRINTED = {
    "ndjson": r'"source":"vehicles","records":2,"rejected":0,',
    "json": r"^2 records accepted$",
    "parquet": r"^2 records accepted$",
    "arrow": r"^2 records accepted$",
    "gzip": r'"records":1,',
    "idempotency": r"^True 409 /problems/idempotency-key-reused$",
    "run": r'"classification_id":"2013-02-08-UA-1018-EWR-IAH"',
    "refused": r"Record 1, field vehicle_id: Expected `str`, got `int`",
    "quarantine": r'"records":2,"rejected":2,',
    "replay": r"(?s)record 1, field vehicle_id.*1 record replayed, as submission (\S+)\n.*"
    r"1 record replayed before, as submission \1$",
    "sources": r"^vehicles \['vehicle_id'\]\nstatus \['operator'",
    "status": r"^stored bronze/source=vehicles/date=",
    "object": r"^\d+ rows in \d+ bytes, trace [0-9a-f]{32}$",
    "lineage": r"^1 submission in \['bronze/source=vehicles/date=.*\.parquet'\]$",
    "feed": r"^True$",
    "health": r'"status":"ready"',
}


def test_each_example_is_run() -> None:
    assert EXAMPLES.keys() == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_does_what_it_says(name: str, system: System, tmp_path: Path) -> None:
    """It runs in its own process, with only the addresses and credentials that `make up` gives its users."""
    language, code = EXAMPLES[name]
    command = [sys.executable, "-W", "error", "-c", code] if language == "python" else ["bash", "-euc", code]
    bronze = Path(servers.executable("bronze")).parent
    env = {**system.client_env, **system.role("publisher").env, "BRONZE_API_URL": system.url}
    outcome = subprocess.run(
        command,
        cwd=tmp_path,
        env=env | {"PATH": f"{bronze}{os.pathsep}{env['PATH']}"},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(PRINTED[name], outcome.stdout.strip()), outcome.stdout
