"""Every command in README.md and docs/ runs as printed, or is in a short list of those that are not run, and why.

The commands of a page share a folder, in the order of the page. What changes lanes, catalog, objects or keys runs on a
system of its own.
"""

import datetime as dt
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from local.programs import LOOPBACK
from tests.system.blackbox import STOP_S_MAX, System, until

FENCED = re.compile(r"^( *)(?:<!-- test: (\w+) -->\n+ *)?```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: The beginnings of the blocks that are not run.
NOT_RUN = {
    "make up ": "it takes the ports of the user's own system; `make demo` runs it, and `make test` is this",
    "make secrets": "it needs Docker; tests/unit/test_compose.py checks the files",
    "export BRONZE_TRACES_EXPORTER=zipkin": "`make up` again; tests/pipeline/test_layers_swap.py switches exporters",
    ".venv/bin/supervisorctl": "it needs the system of `make up`; tests/runner/test_supervision.py runs it",
    "make test T=tests/delivery": "these tests",
    "BRONZE_QUEUE_REPLICAS=3 bronze queue copy": "it needs other servers; tests/delivery/test_moved_queue.py copies",
    "bronze retain --every": "it runs until it is stopped; tests/unit/test_retain_every.py runs it",
    "bronze serve --workers": "they run until they are stopped; tests/system/test_workers.py runs them",
    "set -e": "it needs Docker; tests/compat/test_rolling_upgrade.py replaces the programs",
    "kubectl create": "it needs a cluster; tests/chart runs the commands of the containers",
    "helm install": "it needs a cluster; tests/chart renders the chart",
    "helm upgrade": "it needs a cluster; tests/chart renders the chart",
    "bronze_job": "it needs a cluster; tests/chart runs such a Job",
    ".venv/bin/python -m docs.sizing": "it needs the repository; tests/unit/test_docs_sizing.py runs it",
    "bronze erase verify": "messages are left until the grace period is over; tests/contract/test_erasure.py verifies",
    "make bench": "it takes forty minutes; tests/unit/test_benchmarks.py checks the parts",
}
#: What runs on a system of its own.
BREAKING = re.compile(r"bronze (lanes|catalog|objects acknowledge|keys|erase)|fleet\.key")
#: Commands that ask before they change something, which needs a terminal.
ASKING = (
    "init|lanes [0-9]+|catalog rebuild|retain|erase --|objects acknowledge|quarantine replay|"
    "keys (create|rotate|limit|revoke)"
)
RUN_S_MAX = 60.0
FLIGHT = {"operator": "UA", "run_number": 1545, "origin": "EWR", "destination": "IAH"}
SCHEDULED = "2013-01-01T05:15:00Z"


@dataclass(frozen=True)
class Block:
    page: str
    marked: str | None
    code: str

    @property
    def is_run_here(self) -> bool:
        """Those that are marked are run by the test of their page."""
        return not self.marked and not any(self.code.startswith(begin) for begin in NOT_RUN)

    @property
    def breaks(self) -> bool:
        return BREAKING.search(self.code) is not None


def blocks(file: Path) -> list[Block]:
    found = FENCED.finditer(file.read_text(encoding="utf-8"))
    return [Block(file.name, match[2], re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)) for match in found]


EVERY = {file.name: blocks(file) for file in PAGES}


def test_each_exception_is_still_needed() -> None:
    begins = [begin for begin in NOT_RUN if not any(b.code.startswith(begin) for of in EVERY.values() for b in of)]
    assert begins == []


def test_each_marked_example_is_run_by_the_test_of_its_page() -> None:
    """They are run with a check of what they print."""
    for page, found in EVERY.items():
        tests = [REPOSITORY / "tests" / "system" / f"test_docs_{Path(page).stem}.py"]
        for block in found:
            if block.marked:
                assert f'"{block.marked}"' in tests[0].read_text(encoding="utf-8")


def test_each_variable_that_a_page_sets_exists() -> None:
    """As a setting, or in the example of `.env`."""
    known = (REPOSITORY / "docs" / "settings.md").read_text() + (REPOSITORY / ".env.example").read_text()
    for page, found in EVERY.items():
        for block in found:
            for name in re.findall(r"^(?:export )?((?:BRONZE|OTLP|COLLECTOR)_\w+)=", block.code, re.MULTILINE):
                assert re.search(rf"\b{name}\b", known), f"{page}: {name}"


@dataclass
class Reader:
    """Somebody who follows a page: a folder, the variables, and what stands for the names of the page."""

    folder: Path
    env: dict[str, str]
    names: dict[str, str]
    #: whether a command that never ends by itself has done what it says; by a part of its line
    done: Mapping[str, Callable[[str], bool]]

    def follow(self, block: Block) -> None:
        code = block.code
        for name, value in self.names.items():
            code = code.replace(name, value)
        script: list[str] = []
        for line in code.splitlines():
            done = next((done for part, done in self.done.items() if part in line), None)
            if done is None:
                script.append(line)
            else:
                self._run("\n".join(script))
                self._run_until(line, done)
                script = []
        self._run("\n".join(script))

    def _run(self, script: str) -> None:
        ended = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=limit_s(RUN_S_MAX),
            check=False,
        )
        assert ended.returncode == 0, f"{script}\n{ended.stdout}\n{ended.stderr}"

    def _run_until(self, line: str, done: Callable[[str], bool]) -> None:
        output = self.folder / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {line}"],
                cwd=self.folder,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(line, lambda: done(output.read_text()) or process.poll() is not None)
            assert process.poll() is None, f"{line}\n{output.read_text()}"
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(limit_s(STOP_S_MAX)) in {0, -signal.SIGTERM}, f"{line}\n{output.read_text()}"
        finally:
            process.kill()
            process.wait()


@contextmanager
def steady(system: System) -> Iterator[None]:
    """New data of the source `status`, as long as the block runs."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.3):
            system.post("status", json.dumps({**FLIGHT, "scheduled_at": SCHEDULED}).encode())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def programs(folder: Path) -> None:
    """The programs that the pages name, with what the tests change about them."""
    folder.mkdir(parents=True)
    venv = Path(servers.executable("bronze")).parent
    # a command that asks, and has no terminal, needs --yes
    asks = f'[[ "$*" =~ ^({ASKING}) && "$*" != *--dry-run* && "$*" != *--yes* ]]'
    scripts = {
        "bronze": f'if {asks}; then set -- "$@" --yes; fi\nexec {venv}/bronze "$@"',
        "curl": f'exec {shutil.which("curl")} --fail-with-body "$@"',
        # it would listen on its usual ports
        "otelcol": 'exec "$OTELCOL" validate "$@"',
    }
    if not shutil.which("sqlite3"):
        rows = "sqlite3.connect(sys.argv[1]).execute(sys.argv[2])"
        scripts["sqlite3"] = f"exec python -c 'import sqlite3, sys; print(*{rows}.fetchall())' \"$@\""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)


def files(folder: Path, system: System) -> None:
    """The files that the pages name."""
    for name in ("otel-collector", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    programs(folder / ".venv" / "bin")
    samples = folder / "samples"
    samples.mkdir()
    lines = (REPOSITORY / "samples" / "status.ndjson").read_bytes().splitlines(keepends=True)
    (samples / "status.ndjson").write_bytes(b"".join(lines[:50]))
    pq.write_table(pa.table({"id": ["a"], "count": [1]}), samples / "orders.parquet")
    (folder / "orders.ndjson").write_text('{"id": "b", "count": 2}\n')
    (folder / "fleet.csv").write_text("vehicle_id,seats\nN1,149\n")
    pq.write_table(pa.table({"vehicle_id": ["N2"]}), folder / "fleet-2.parquet")
    (folder / "vehicles.ndjson").write_text('{"vehicle_id": "N3"}\n')
    header, *rows = ("operator,run_number,origin,destination,scheduled_at", f"UA,1,EWR,IAH,{SCHEDULED}")
    (folder / "status-1.csv").write_text("\n".join([header, *rows, ""]))
    for directory in ("spool", "watched"):
        (folder / directory).mkdir()
        (folder / directory / "a.csv").write_text("\n".join([header, *rows, ""]))
    subprocess.run(["gzip", "-k", str(samples / "status.ndjson")], check=True)
    (samples / "status.ndjson.gz").rename(folder / "old.ndjson.gz")
    declaration = re.search(
        r"```toml\n(# own\.toml.*?)```", (REPOSITORY / "docs" / "sources.md").read_text(), re.DOTALL
    )
    assert declaration
    for name in ("own.toml", "old.toml"):
        (folder / name).write_text(declaration[1])


def landed(system: System) -> str:
    """A bucket of somebody else, with the object that a page names."""
    bucket = f"landing-{uuid4().hex[:12]}"
    flight = {**FLIGHT, "scheduled_at": dt.datetime.fromisoformat(SCHEDULED)}
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist([flight]), sink)
    system.s3.create_bucket(Bucket=bucket)
    system.s3.put_object(Bucket=bucket, Key="2013/01/status.parquet", Body=sink.getvalue())
    return bucket


def watched(folder: Path) -> bool:
    """Whether the file of the watched folder was sent."""
    state = folder / "watched" / ".bronze" / "status.sqlite"
    try:
        with closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as known:
            return bool(known.execute("SELECT 1 FROM files").fetchall())
    except sqlite3.OperationalError:
        return False


def reader_of(system: System, folder: Path) -> Reader:
    """A reader on a system that has a stored submission of the sample's classification."""
    folder.mkdir()
    files(folder, system)
    sent = system.post(
        "status",
        json.dumps({**FLIGHT, "scheduled_at": SCHEDULED}).encode(),
        Bronze_Classification_Id="2013-02-08-UA-1018-EWR-IAH",
    ).json()
    (link,) = system.stored(sent["submission_id"])["objects"]
    until("the index knows it", lambda: system.get(f"/v1/lineage?trace_id={sent['trace_id']}").is_success)
    stack = system.stack
    env = {
        **system.client_env,
        **system.role("publisher").env,
        **stack.queue_env("admin"),
        **stack.trace_store_env,
        "OTELCOL": str(stack.built.collector),
        "BRONZE_API_URL": system.url,
        "FILE_PATH": link["file_path"],
        "SOURCE": "status",
    }
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items() if name != "PATH")
    (folder / ".local" / "up").mkdir(parents=True)
    (folder / ".local" / "up" / "env").write_text(exports)
    python = Path(sys.executable).parent
    env["PATH"] = os.pathsep.join([str(folder / ".venv" / "bin"), str(python), env["PATH"]])
    ports = {"127.0.0.1:9090": stack.ports.prometheus, "127.0.0.1:9411": stack.ports.zipkin}
    return Reader(
        folder,
        env,
        {
            "http://127.0.0.1:8000": system.url,
            "localhost:8000": f"localhost:{stack.ports.api}",
            **{name: f"{LOOPBACK}:{port}" for name, port in ports.items()},
            "4bf92f3577b34da6a3ce929d0e0e4736": sent["trace_id"],
            "01939f4e-6b7c-7cc3-a4f5-0242ac120002": sent["submission_id"],
            "bronze/source=status/date=2026-11-27/hour=10/….parquet": link["file_path"],
            "s3://landing/": f"s3://{landed(system)}/",
            "/tmp/": f"{folder}/",
            "/var/spool/status": str(folder / "watched"),
        },
        {
            "lineage follow --source status --since 2h --json": lambda output: '"source":"status"' in output,
            "lineage follow": lambda output: ".parquet" in output,
            "curl -N": lambda output: "event: object" in output or "data: {" in output,
            "--watch": lambda output: watched(folder),
        },
    )


RUN = {page: [block for block in found if block.is_run_here and not block.breaks] for page, found in EVERY.items()}
BREAK = {page: [block for block in found if block.is_run_here and block.breaks] for page, found in EVERY.items()}
#: The id of a key, on the page that shows how to revoke one.
KEY_ID = "3f9a1c0b77de"
PRINT_ID = """python -c 'import json, sys; print(json.load(sys.stdin)["key_id"])'"""
FIRST_KEY = f'"$(bronze keys list --json | head -1 | {PRINT_ID})"'


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_the_commands_of_a_page_run_as_printed(page: str, system: System, tmp_path: Path) -> None:
    with steady(system):
        reader = reader_of(system, tmp_path / "reader")
        if page == "README.md":
            until("an exemplar", lambda: system.exemplars("bronze_upload_duration_seconds_bucket"))
        for block in RUN[page]:
            reader.follow(block)


@pytest.mark.parametrize("page", [page for page, found in BREAK.items() if found])
def test_commands_that_change_a_system_run_as_printed(page: str, branch: System, tmp_path: Path) -> None:
    """Those of security.md, on an API that needs the keys which they create."""
    auth = "keys" if page == "security.md" else "open"
    with branch.queue(), branch.running(branch.role("consumer")):
        with branch.running(branch.role("api")):
            reader = reader_of(branch, tmp_path / "reader")
        with branch.running(branch.role("api", BRONZE_AUTH=auth)):
            # the tables are those of the system, whose accounts a branch does not have
            for name in [name for name in reader.env if name.startswith("PYICEBERG_")]:
                del reader.env[name]
            path = reader.env["FILE_PATH"]
            reader.names |= {KEY_ID: FIRST_KEY, "FILE_PATH...": shlex.quote(path)}
            for block in BREAK[page]:
                if "FILE_PATH" in block.code:
                    branch.s3.delete_object(Bucket=branch.bucket, Key=path)
                reader.follow(block)
