"""The committer of tables as a process, with SeaweedFS' own catalog."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog, load_catalog

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from local.programs import Process
from tests.system.blackbox import System, ndjson, until, vehicles
from tests.system.test_readers import MARKED

ROWS = 7
SOURCES = REPOSITORY / "service" / "bronze" / "sources.toml"
ADDED = """
[added]
description = "A source that is added."
fields = [{ name = "a", type = "string", description = "-" }]
"""
PAGE = REPOSITORY / "docs" / "tables.md"
BRONZE = (sys.executable, "-m", "bronze")
RECIPES = ("pyiceberg", "polars_iceberg", "duckdb_pyiceberg")


@pytest.fixture
def catalog(system: System) -> Catalog:
    """The catalog, with the account of the commands. pyiceberg reads its variables when it is imported."""
    account = system.stack.account
    credentials = {"s3.access-key-id": account.access_key, "s3.secret-access-key": account.secret_key}
    return load_catalog("reader", **servers.tables_catalog(account), **credentials)


def namespace(system: System) -> str:
    return system.prefix.replace("-", "_")


@pytest.fixture
def table(system: System) -> Iterator[Process]:
    """The running role, with tables of its own."""
    program = system.role("table", BRONZE_TABLE_NAMESPACE=namespace(system), BRONZE_TABLE_INTERVAL_S="0.2")
    with system.running(program) as processes:
        yield processes["table"]


def rows(system: System, catalog: Catalog, submission_id: str) -> "Counter[int]":
    identifier = (namespace(system), "vehicles")
    if not catalog.table_exists(identifier):
        return Counter()
    found = catalog.load_table(identifier).scan(
        row_filter=f"_submission_id = '{submission_id}'", selected_fields=("_record_index",)
    )
    return Counter(found.to_arrow()["_record_index"].to_pylist())


def test_accepted_records_are_rows_of_the_table_once(
    system: System, catalog: Catalog, table: Process, mark: str
) -> None:
    ids = []
    for round_ in range(3):
        accepted = system.post("vehicles", ndjson(vehicles(f"{mark}{round_}", ROWS)))
        ids.append(accepted.json()["submission_id"])
    for submission_id in ids:
        system.stored(submission_id)
        found = until("its rows are in the table", partial(rows, system, catalog, submission_id))
        assert found == Counter(range(ROWS))


def maintain(system: System, *command: str) -> dict[str, int]:
    """Run a command of maintenance for the table of vehicles. Returns what it says."""
    outcome = subprocess.run(
        [*BRONZE, "table", *command, "--source", "vehicles", "--json", "--yes"],
        env={**system.client_env, "BRONZE_TABLE_NAMESPACE": namespace(system)},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return dict(json.loads(outcome.stdout))


def test_a_compaction_leaves_the_rows(system: System, catalog: Catalog, table: Process, mark: str) -> None:
    """Beside the running committer: also those of the open hour, which it goes on to append. So does an expiry, for
    which the snapshots are too young.
    """
    ids = []
    for round_ in range(3):
        accepted = system.post("vehicles", ndjson(vehicles(f"{mark}{round_}", ROWS)))
        ids.append(accepted.json()["submission_id"])
        until("its rows are in the table", partial(rows, system, catalog, ids[-1]))
    done = maintain(system, "compact", "--older-than", "0")
    assert done["files"] >= 3
    assert done["new_files"] < done["files"]
    assert maintain(system, "expire") == {
        "source": "vehicles",
        "expired_snapshots": 0,
        "deleted_files": 0,
        "deleted_bytes": 0,
    }
    last = system.post("vehicles", ndjson(vehicles(mark, ROWS))).json()["submission_id"]
    until("its rows are in the table", partial(rows, system, catalog, last))
    for submission_id in (*ids, last):
        assert rows(system, catalog, submission_id) == Counter(range(ROWS))


def test_a_row_leads_to_its_traces_and_to_the_snapshot(
    system: System, catalog: Catalog, table: Process, mark: str
) -> None:
    """From a row of the table, by its columns, to what the lineage says of its object, and on to the commit's trace."""
    sent = system.post("vehicles", ndjson(vehicles(mark, ROWS))).json()
    until("its rows are in the table", partial(rows, system, catalog, sent["submission_id"]))
    loaded = catalog.load_table((namespace(system), "vehicles"))
    row = loaded.scan(row_filter=f"_submission_id = '{sent['submission_id']}'", limit=1).to_arrow().to_pylist()[0]
    assert row["_trace_id"] == sent["trace_id"]
    outcome = subprocess.run(
        [*BRONZE, "lineage", "--file-path", row["file_path"], "--tables", "--json"],
        env={**system.client_env, "BRONZE_TABLE_NAMESPACE": namespace(system)},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    (written,) = json.loads(outcome.stdout)["objects"]
    snapshot = written["snapshot"]
    appended = loaded.refresh().snapshot_by_id(int(snapshot["snapshot_id"]))
    assert appended is not None
    assert appended.summary is not None
    assert snapshot["trace_id"] in appended.summary.additional_properties["bronze.traceparent"]
    path = f"/v1/lineage?file_path={row['file_path']}"
    until("the API says the same", lambda: system.get(path).json()["objects"][0]["snapshot"] == snapshot)
    (span,) = until("the commit has a trace", lambda: system.trace(snapshot["trace_id"]))
    assert span["tags"]["bronze.table.snapshot_id"] == str(appended.snapshot_id)


def test_an_edited_file_of_sources_is_taken(system: System, catalog: Catalog, tmp_path: Path, mark: str) -> None:
    """On SIGHUP, by the same process; one that cannot be read changes nothing."""
    declarations = SOURCES.read_text()
    file = tmp_path / "own.toml"
    file.write_text(declarations)
    role = system.role(
        "table", BRONZE_SOURCES=str(file), BRONZE_TABLE_NAMESPACE=namespace(system), BRONZE_TABLE_INTERVAL_S="0.2"
    )
    added = (namespace(system), "added")
    with system.running(role) as processes:
        table = processes["table"]
        pid = table.pid
        first = system.post("vehicles", ndjson(vehicles(mark, ROWS))).json()["submission_id"]
        until("its rows are in the table", partial(rows, system, catalog, first))
        assert not catalog.table_exists(added)

        file.write_text("[added")
        table.signal(signal.SIGHUP)
        log = system.log("table")
        until("it refuses the file", lambda: "SIGHUP: the sources stay as they are" in log.read_text())
        file.write_text(f"{declarations}\n{ADDED}")
        table.signal(signal.SIGHUP)
        until("the new source has a table", lambda: catalog.table_exists(added))
        last = system.post("vehicles", ndjson(vehicles(mark, ROWS))).json()["submission_id"]
        until("its rows are in the table", partial(rows, system, catalog, last))
        assert table.pid == pid
        assert table.alive()
    for submission_id in (first, last):
        assert rows(system, catalog, submission_id) == Counter(range(ROWS))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_the_table(name: str, system: System, catalog: Catalog, table: Process, mark: str) -> None:
    accepted = system.post("vehicles", ndjson(vehicles(mark, ROWS)))
    until("its rows are in the table", partial(rows, system, catalog, accepted.json()["submission_id"]))
    recipe = dict(MARKED.findall(PAGE.read_text(encoding="utf-8")))[name]
    outcome = subprocess.run(
        [sys.executable, "-c", recipe.replace("bronze.vehicles", f"{namespace(system)}.vehicles")],
        env=system.client_env,
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert {f"('{mark}-{n}', {n}, 1)" for n in range(ROWS)} <= set(outcome.stdout.splitlines())
