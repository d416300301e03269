"""The examples of docs/client.md run as printed."""

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

PAGE = REPOSITORY / "docs" / "client.md"
MARKED = re.compile(r"<!-- test: (\w+) -->\s*```(sh|python)\n(.*?)```", re.DOTALL)
EXAMPLES = {name: (language, code) for name, language, code in MARKED.findall(PAGE.read_text(encoding="utf-8"))}
#: The output of each example, as far as it is always the same.
PRINTED = {
    "submit": r"^1 accepted\nstored [1-9]\d*$",
    "arrow": r"^2 accepted\nschema-violation 0$",
    "follow": r"^(bronze/source=vehicles/\S+ \d+ True\n)+\Z",
    "silver": r"results, failures, joined: \([1-9]\d*, [1-9]\d*, [1-9]\d*\)\n\Z",
    "read": r"^True \['vehicle_id', 'seats'\]$",
    "async": r"^\{'stored'\}\nTrue$",
}


def test_each_example_is_run() -> None:
    assert EXAMPLES.keys() == PRINTED.keys()


@pytest.fixture(scope="module")
def data(system: System) -> None:
    """A vehicle, and the whole sample of results and failures."""
    sent = [system.post("vehicles", b'{"vehicle_id": "N1", "seats": 149}')]
    samples = (REPOSITORY / "samples" / f"{source}.ndjson" for source in ("results", "failures"))
    sent += [system.post(sample.stem, sample.read_bytes()) for sample in samples]
    for answer in sent:
        assert answer.status_code == 202, answer.text
        system.stored(answer.json()["submission_id"])


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.usefixtures("data")
def test_an_example_does_what_it_says(name: str, system: System, tmp_path: Path) -> None:
    """It runs in its own process, with only the addresses and credentials that `make up` gives its users."""
    language, code = EXAMPLES[name]
    command = [sys.executable, "-W", "error", "-c", code] if language == "python" else ["bash", "-euc", code]
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    programs = Path(servers.executable("bronze")).parent
    outcome = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **system.client_env,
            "BRONZE_API_URL": system.url,
            "PATH": f"{programs}{os.pathsep}{system.client_env['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(PRINTED[name], outcome.stdout, re.MULTILINE), outcome.stdout
