"""The committed sample is what README.md says of it."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bronze.records import sources

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "samples"
SOURCES = sources.built_in()


def lines(source: str) -> list[bytes]:
    return (SAMPLES / f"{source}.ndjson").read_bytes().splitlines()


def decoded(source: str) -> list[Any]:
    return [msgspec.json.decode(line, type=SOURCES[source].record_type) for line in lines(source)]


def test_size() -> None:
    """It is large enough to mean something and small enough to be committed."""
    files = sorted(SAMPLES.glob("*.ndjson"))
    assert [file.stem for file in files] == sorted(SOURCES)
    assert sum(len(lines(source)) for source in SOURCES) >= 5_000
    assert sum(file.stat().st_size for file in files) < 1_000_000


@pytest.mark.parametrize("source", SOURCES)
def test_every_record_is_of_its_source(source: str) -> None:
    """Every record decodes by its source's declaration, none is empty, none is there twice."""
    assert decoded(source)
    assert max(Counter(lines(source)).values()) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_every_declared_field_is_used(source: str) -> None:
    """Each field of a source's first version has a value somewhere, or its column would prove nothing.

    A field that was added later may have none: the sample is data of 2013, which need not have a value for it.
    """
    used = {name for record in decoded(source) for name, value in msgspec.structs.asdict(record).items() if value}
    assert {field.name for field in SOURCES[source].fields if field.since == 1} <= used


@pytest.mark.parametrize("source", ["vehicles", "results"])
def test_undeclared_fields(source: str) -> None:
    """Some records hold more than is declared, which only `_payload` keeps."""
    declared = {field.name for field in SOURCES[source].fields} | {sources.CLASSIFICATION_ID}
    assert any(set(msgspec.json.decode(line)) - declared for line in lines(source))


def test_runs() -> None:
    """A run has one status, and one result, one failure or, if it was very late, both; vehicles belong to no run."""
    status, results, failures = (
        Counter(record.classification_id for record in decoded(source)) for source in ("status", "results", "failures")
    )
    assert max(status.values()) == 1
    assert status == results | failures
    both = results & failures
    assert len(both) > 20
    late = {record.classification_id for record in decoded("results") if (record.delay_min or 0) >= 120}
    assert both.keys() == late
    reasons = {record.classification_id: record.reason for record in decoded("failures")}
    assert {leg for leg, reason in reasons.items() if reason == "late"} == late
    assert {record.classification_id for record in decoded("vehicles")} == {None}


def test_times() -> None:
    """Times agree over time zones and midnight: a run arrives after it left, by just what its duration says."""
    departed = {record.classification_id: record.departed_at for record in decoded("status")}
    results = decoded("results")
    assert all(
        (record.arrived_at - departed[record.classification_id]).total_seconds() == 60 * record.duration_min > 0
        for record in results
    )
    assert len({record.arrived_at.utcoffset() for record in results}) > 1
    assert any(record.arrived_at.date() > departed[record.classification_id].date() for record in results)


def test_examples_name_flight_legs_of_the_sample() -> None:
    """`bronze lineage` of the README finds something after `make up`, and the documents agree on their examples."""
    legs = {record.classification_id for record in decoded("status")}
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    looked_up = set(re.findall(r"^\S*bronze lineage (\S+)", readme, re.MULTILINE)) - {"follow"}
    assert looked_up
    assert looked_up <= legs
    documents = [REPOSITORY / "README.md", SAMPLES / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    named = {leg for file in documents for leg in re.findall(r"\b2013-\d\d-\d\d-[\w-]+", file.read_text("utf-8"))}
    assert named > looked_up
    assert named <= legs
