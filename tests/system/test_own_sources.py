"""A user's own sources, declared in a file only. They get new fields while old and new processes run at the same time,
and a change that breaks old data is refused.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from local.builds import REPOSITORY
from local.machine import limit_s
from local.programs import environment, free_ports
from tests.system.blackbox import NO_EXEMPLARS, System, until

OLD = """
[things]
description = "A thing."
fields = [
    { name = "thing_id", type = "string", required = true, description = "Its name." },
    { name = "price", type = "decimal128(10, 2)", description = "What it costs." },
    { name = "pieces", type = "int64", description = "How many there are." },
    { name = "seen_at", type = "timestamp", description = "When it was seen." },
    { name = "made_on", type = "date32", description = "When it was made." },
]
"""
COLOUR = '{ name = "colour", type = "string", since = 2, description = "Its colour." }'
NEW = OLD.replace('"A thing."', '"A thing."\nversion = 2').replace("\n]", f"\n    {COLOUR},\n]")
#: How long old data waits for the new consumer: it continues at once, not after the old consumer's next check.
HANDOVER_S_MAX = 15
MARKED = re.compile(r"<!-- test: (\w+) -->\s*```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Upgrade:
    """A half-finished rolling upgrade: old and new processes use one queue."""

    old: System
    new: System
    folder: Path
    statuses: Sequence[str]

    def refused(self, command: str, text: str) -> str:
        """The standard error of a role that refuses to start with this declaration."""
        file = self.folder / "changed.toml"
        file.write_text(text)
        own = {"BRONZE_SOURCES": str(file), "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_ports())}
        program = self.new.role("api" if command == "serve" else "consumer", **own)
        outcome = subprocess.run(
            program.command, env=environment(program), capture_output=True, text=True, timeout=limit_s(60), check=False
        )
        assert outcome.returncode == 2, (outcome.returncode, outcome.stdout, outcome.stderr)
        return outcome.stderr.removeprefix(f"bronze {command}: {file}: ").strip()

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self.new.rows("things"), key=lambda row: str(row["thing_id"]))


def sends(system: System, **record: object) -> str:
    """Sends one record, and returns its submission_id."""
    answer = system.post("things", json.dumps(record).encode())
    assert answer.status_code == 202, answer.text
    return str(answer.json()["submission_id"])


@pytest.fixture(scope="module")
def upgrade(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgrade]:
    """An old API and consumer, a new API, and, after the old consumer has read a newer message, a new consumer."""
    folder = tmp_path_factory.mktemp("own-sources")
    for name, text in (("old", OLD), ("new", NEW)):
        (folder / f"{name}.toml").write_text(text)
    branch = system.branch(folder / "old")
    old = replace(branch, env={**branch.env, **NO_EXEMPLARS, "BRONZE_SOURCES": str(folder / "old.toml")})
    ports = replace(branch.stack.ports, api=free_ports(), consumer=free_ports())
    new = replace(
        branch,
        stack=replace(branch.stack, root=folder / "new", ports=ports),
        env={**branch.env, **NO_EXEMPLARS, "BRONZE_SOURCES": str(folder / "new.toml")},
    )
    with old.queue(), old.running(old.role("api"), old.role("consumer")), new.running(new.role("api")):
        old.stored(sends(old, thing_id="1", price="1.50", colour="kept in the payload"))
        waiting = [
            sends(new, thing_id="2", price=2.25, colour="red"),
            sends(old, thing_id="3", price="3", colour=[3]),
        ]

        def left() -> bool:
            errors = old.metrics("consumer").all("bronze_consumer_errors_total", error_type="unknown-format")
            return sum(errors) > 0

        until("the old consumer meets a version that it does not know", left)
        statuses = [old.get(f"/v1/submissions/{submission_id}").json()["status"] for submission_id in waiting]
        with new.running(new.role("consumer")):

            def handed_over() -> bool:
                answers = [new.get(f"/v1/submissions/{submission_id}").json() for submission_id in waiting]
                return all(answer["status"] == "stored" for answer in answers)

            until("the new consumer has taken over the lane", handed_over, HANDOVER_S_MAX)
            old.stored(sends(old, thing_id="4", colour=4))
            new.stored(sends(new, thing_id="5", colour=None))
            yield Upgrade(old, new, folder, statuses)


# --- old and new processes at the same time


def test_the_older_consumer_leaves_newer_records_to_the_newer_one(upgrade: Upgrade) -> None:
    """It neither drops nor quarantines messages of a newer version, nor those after them."""
    assert upgrade.statuses == ["accepted", "accepted"]
    assert upgrade.new.keys("quarantine/source=things/") == []


def test_each_record_is_a_row_as_the_version_that_it_was_checked_against(upgrade: Upgrade) -> None:
    """Whichever version wrote them: records that an older API accepted have nulls in later fields, and everything
    that was sent in their payloads.
    """
    rows = [(row["thing_id"], row["_schema_version"], row.get("colour"), row["price"]) for row in upgrade.rows()]
    assert rows == [
        ("1", 1, None, Decimal("1.50")),
        ("2", 2, "red", Decimal("2.25")),
        ("3", 1, None, Decimal("3.00")),
        ("4", 1, None, None),
        ("5", 2, None, None),
    ]
    payloads = [json.loads(row["_payload"]) for row in upgrade.rows()]
    assert [payload["colour"] for payload in payloads] == ["kept in the payload", "red", [3], 4, None]


# --- declarations, over HTTP


def test_the_declared_sources_are_listed(upgrade: Upgrade) -> None:
    """The file is the complete list, and each API reports its own version."""
    (listed,) = upgrade.new.get("/v1/sources").json()["sources"]
    assert listed == {
        "name": "things",
        "description": "A thing.",
        "version": 2,
        "ingest_url": "/v1/ingest/things",
        "schema_url": "/v1/sources/things/schema",
    }
    assert upgrade.old.get("/v1/sources").json()["sources"][0]["version"] == 1
    unknown = upgrade.new.get("/v1/sources/vehicles/schema")
    assert (unknown.status_code, unknown.json()["type"], unknown.json()["sources"]) == (
        404,
        "/problems/unknown-source",
        ["things"],
    )


def test_the_schema_says_what_is_sent_and_what_is_stored(upgrade: Upgrade) -> None:
    schema = upgrade.new.get("/v1/sources/things/schema").json()
    assert schema["fields"][-1] == {
        "name": "colour",
        "type": "string",
        "required": False,
        "since": 2,
        "description": "Its colour.",
    }
    columns = {column["name"]: column["type"] for column in schema["columns"]}
    assert (columns["price"], columns["seen_at"], columns["_payload"]) == (
        "decimal128(10, 2)",
        "timestamp[us, tz=UTC]",
        "string",
    )
    assert list(columns) == list(upgrade.rows()[1])


SENT: list[tuple[str, bool]] = [
    ('{"thing_id": "x"}', True),
    ('{"thing_id": "x", "price": "1.50", "pieces": 3, "seen_at": "2013-01-01T05:15:00-05:00"}', True),
    ('{"thing_id": "x", "price": 1.5, "made_on": "2013-01-01", "colour": null, "more": [1]}', True),
    ('{"thing_id": "x", "classification_id": "run"}', True),
    ("{}", False),
    ('{"thing_id": null}', False),
    ('{"thing_id": 1}', False),
    ('{"thing_id": "x", "price": "1.505"}', False),
    ('{"thing_id": "x", "price": 123456789.5}', False),
    ('{"thing_id": "x", "pieces": 1.5}', False),
    ('{"thing_id": "x", "pieces": 9223372036854775808}', False),
    ('{"thing_id": "x", "seen_at": "2013-01-01T05:15:00"}', False),
    ('{"thing_id": "x", "made_on": "2013-02-29"}', False),
    ('{"thing_id": "x", "colour": 1}', False),
    ('{"thing_id": "x", "classification_id": ""}', False),
]


def test_the_json_schema_takes_what_the_api_takes(upgrade: Upgrade) -> None:
    """Every record is sent over HTTP, and is accepted exactly if the JSON Schema accepts it."""
    schema = upgrade.new.get("/v1/sources/things/schema").json()["json_schema"]
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    for record, is_accepted in SENT:
        body = record.replace('"x"', '"6"').encode()
        answer = upgrade.new.post("things", body)
        assert (answer.status_code, validator.is_valid(json.loads(body))) == (
            202 if is_accepted else 422,
            is_accepted,
        ), record


# --- readers, with the snippets of the documentation


@pytest.mark.parametrize("name", ["duckdb", "polars", "pyarrow"])
def test_old_and_new_objects_are_read_together(name: str, upgrade: Upgrade) -> None:
    """The snippet of docs/sources.md, as printed, returns every row, with nulls for fields that were declared later."""
    snippet = dict(MARKED.findall((REPOSITORY / "docs/sources.md").read_text(encoding="utf-8")))[name]
    objects = upgrade.folder / "objects"
    for key in upgrade.new.keys(f"{upgrade.new.prefix}/source=things/"):
        file = objects / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(upgrade.new.body(key))
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        env={**os.environ, "OBJECTS": str(objects / upgrade.new.prefix / "source=things")},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    printed = [line for line in outcome.stdout.splitlines() if not line.startswith("('6'")]
    assert printed == ["('1', 1, None)", "('2', 2, 'red')", "('3', 1, None)", "('4', 1, None)", "('5', 2, None)"]


# --- declarations that are refused at the start


def test_a_breaking_change_is_refused_with_its_reason(upgrade: Upgrade) -> None:
    """Exit code 2, and an error with the file, the source, the field, both values, and the remedy."""
    changed = NEW.replace("version = 2", "version = 3").replace(
        '"pieces", type = "int64"', '"pieces", type = "float64"'
    )
    assert upgrade.refused("consume", changed) == (
        "source things, field pieces: the registered version 2 has int64, optional, since version 1; "
        "the declared version 3 has float64, optional, since version 1; you cannot remove a field or change it, except "
        "for a wider type (widened_from): use a new field name instead"
    )


def test_a_wrong_file_is_refused_by_source_and_field(upgrade: Upgrade) -> None:
    wrong = OLD.replace('"int64"', '"int"')
    assert upgrade.refused("serve", wrong).startswith("source things, field pieces: there is no type 'int'; the types")
