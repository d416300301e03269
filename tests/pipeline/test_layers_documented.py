"""The files of `otel-collector/` are consistent with each other and with `docs/exporters.md`."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.builds import REPOSITORY
from local.exporters import COLLECTOR, SIGNALS, known, known_samplings, layer_file, sampling_file

TEXT = (REPOSITORY / "docs" / "exporters.md").read_text()
FILES = [
    COLLECTOR / "config.yaml",
    *(layer_file(f"{signal}/{name}") for signal in SIGNALS for name in known(signal)),
]
SAMPLINGS = [sampling_file(name) for name in known_samplings()]
#: Exporters whose queues form no batches.
TO_PROMETHEUS = {"otlp_http/prometheus", "otlp_http/remote-write"}
VARIABLE = re.compile(r"\$\{env:(\w+)")


def exporters(file: Path) -> dict[str, Any]:
    return {name: config or {} for name, config in yaml.safe_load(file.read_text()).get("exporters", {}).items()}


@pytest.mark.parametrize("signal", SIGNALS)
def test_every_queue_of_a_signal_is_the_same(signal: str) -> None:
    """Persistent, bounded in bytes, batched in the queue, and retried without end: the same for all layers. Only
    Prometheus gets each export as a request of its own.
    """
    senders = {
        name: exporter
        for file in FILES
        for name, exporter in exporters(file).items()
        if file.parent.name == signal and name.partition("/")[0] in {"otlp_http", "otlp_grpc", "zipkin"}
    }
    assert len(senders) >= 2
    blocks = [
        {key: exporter.get(key) for key in ("sending_queue", "retry_on_failure")} for exporter in senders.values()
    ]
    batches = {name: block["sending_queue"].pop("batch", None) for name, block in zip(senders, blocks, strict=True)}
    assert [block for block in blocks if block != blocks[0]] == []
    assert blocks[0]["retry_on_failure"]["max_elapsed_time"] == 0
    queue = blocks[0]["sending_queue"]
    assert (queue["storage"], queue["sizer"]) == ("file_storage", "bytes")
    assert {name for name, batch in batches.items() if batch is None} == TO_PROMETHEUS & senders.keys()
    first, *others = [batch for batch in batches.values() if batch]
    assert [batch for batch in others if batch != first] == []
    assert first["sizer"] == "bytes"
    assert 0 < first["max_size"] < queue["queue_size"]


def test_queues_are_on_disk_before_the_sender_has_its_answer() -> None:
    base = yaml.safe_load((COLLECTOR / "config.yaml").read_text())
    assert base["extensions"]["file_storage"]["fsync"] is True
    assert not [name for name in base["processors"] if name.startswith("batch")]


def test_files_rotate_and_are_bounded() -> None:
    rotations = [e["rotation"] for file in FILES for name, e in exporters(file).items() if name.startswith("file/")]
    assert rotations == [{"max_megabytes": 100, "max_backups": 5}] * len(SIGNALS)


def test_no_two_layers_share_an_exporter_or_a_pipeline() -> None:
    """Otherwise a layer would overwrite another layer's queue."""
    documents = [yaml.safe_load(file.read_text()) for file in FILES]
    names = [name for file in FILES for name in exporters(file)]
    names += [f"pipeline {name}" for document in documents for name in document["service"]["pipelines"]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", FILES + SAMPLINGS, ids=lambda file: "/".join(file.parts[-2:]))
def test_every_layer_and_every_variable_is_documented(file: Path) -> None:
    if file.parent.name in SIGNALS:
        assert f"`{file.parent.name}/{file.stem}`" in TEXT
    if file in SAMPLINGS:
        assert f"`{file.stem}`" in TEXT
    assert [variable for variable in VARIABLE.findall(file.read_text()) if f"`{variable}`" not in TEXT] == []


def test_no_variable_is_documented_that_nothing_reads() -> None:
    read = {variable for file in FILES + SAMPLINGS for variable in VARIABLE.findall(file.read_text())}
    rows = re.findall(r"^\| \*?`([A-Z].*?) \|", TEXT, re.MULTILINE)
    assert set(re.findall(r"[A-Z][A-Z_]+", " ".join(rows))) - read == set()
