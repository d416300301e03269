"""What the system is made of: forbidden licences, vulnerabilities that could not be looked up, digests of images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local import audit, components, images
from local.programs import LocalError

Stub = Callable[..., Path]


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """A program that prints the given texts, and ends with the given code."""

    def create(name: str, output: str = "", *, error: str = "", code: int = 0) -> Path:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\ncat >&2 <<'END'\n{error}\nEND\nexit {code}\n")
        program.chmod(0o755)
        return program

    return create


def document(*licences: dict[str, Any]) -> dict[str, Any]:
    return {"components": [{"name": "it", "version": "1", "licenses": list(licences)}]}


@pytest.mark.parametrize(
    "licence",
    [
        {"license": {"id": "AGPL-3.0-only"}},
        {"license": {"name": "License :: OSI Approved :: GNU Affero General Public License v3"}},
        {"expression": "MIT AND AGPL-3.0-or-later"},
        {"license": {"id": "BUSL-1.1"}},
        {"license": {"name": "Business Source License 1.1"}},
        {"license": {"id": "SSPL-1.0"}},
        {"license": {"id": "Elastic-2.0"}},
    ],
)
def test_forbidden_licences_are_found(licence: dict[str, Any]) -> None:
    """By identifier, name or in an expression, also next to another licence."""
    for licences in ([licence], [{"license": {"id": "MIT"}}, licence]):
        (fault,) = components.faults(components.read("python", document(*licences)))
        assert fault.startswith("it 1 (python) has the licence ")


@pytest.mark.parametrize("identifier", ["MIT", "Apache-2.0", "BSD-3-Clause", "BSL-1.0", "MPL-2.0", "LGPL-3.0-only"])
def test_other_licences_are_accepted(identifier: str) -> None:
    """BSL-1.0 is Boost's, which is like MIT."""
    assert not list(components.faults(components.read("python", document({"license": {"id": identifier}}))))


def test_a_component_without_licence_is_a_fault_if_it_is_ours_to_choose() -> None:
    """Zipkin is run as it is; what is in its jar seldom states a licence."""
    (fault,) = components.faults(components.read("otelcol", document()))
    assert "it 1 (otelcol) states no licence" in fault
    assert not list(components.faults(components.read("zipkin", document())))


def test_licences_that_were_found_in_the_sources_count() -> None:
    """cyclonedx-gomod reports them as evidence."""
    found = {"name": "it", "version": "v1", "evidence": {"licenses": [{"license": {"id": "AGPL-3.0"}}]}}
    assert [it.licence for it in components.read("otelcol", {"components": [found]})] == ["AGPL-3.0"]


def packages(*entries: dict[str, Any]) -> str:
    return json.dumps({"dependencies": entries, "fixes": []})


HARMLESS = {"name": "a", "version": "1", "vulns": []}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (4)"}


def test_vulnerable_packages_are_named(stub: Stub) -> None:
    """pip-audit ends with 1 then; without vulnerabilities there is nothing to tell."""
    found = audit.audit_packages(stub("pip-audit", packages(HARMLESS, VULNERABLE), code=1), Path("lock"))
    assert found == ["b 2: PYSEC-1, corrected in 3"]
    assert audit.audit_packages(stub("pip-audit", packages(HARMLESS)), Path("lock")) == []


@pytest.mark.parametrize(
    ("output", "error", "code", "reason"),
    [
        pytest.param(packages(HARMLESS, SKIPPED), "No known vulnerabilities found", 0, "c: .*not found", id="skipped"),
        pytest.param("", "trace\nConnectionError: no such host", 1, "^ConnectionError: no such host$", id="no network"),
        pytest.param("", "", 0, "exit code 0", id="nothing said"),
        pytest.param(packages(), "", 0, "names no package", id="nothing looked at"),
    ],
)
def test_packages_that_were_not_looked_up_fail(stub: Stub, output: str, error: str, code: int, reason: str) -> None:
    """Whatever pip-audit's exit code is."""
    with pytest.raises(LocalError, match=reason):
        audit.audit_packages(stub("pip-audit", output, error=error, code=code), Path("lock"))


MODULES = json.dumps({"SBOM": {"modules": [{"path": "a.example/a"}]}}, indent=2)
FINDING = {"osv": "GO-1", "fixed_version": "v1.1.0", "trace": [{"module": "a.example/a", "version": "v1.0.0"}]}


def test_vulnerable_modules_are_named(stub: Stub) -> None:
    """Once for each module, however often its functions are in the program."""
    output = "\n".join([MODULES, *[json.dumps({"finding": FINDING}, indent=2)] * 2])
    found = audit.audit_program(stub("govulncheck", output), Path("program"))
    assert found == ["GO-1 in a.example/a v1.0.0, corrected in v1.1.0"]
    assert audit.audit_program(stub("govulncheck", MODULES), Path("program")) == []


def test_programs_that_were_not_looked_up_fail(stub: Stub) -> None:
    """Without a network, and if govulncheck looked at no module."""
    with pytest.raises(LocalError, match=r"^fetching: no such host$"):
        audit.audit_program(stub("govulncheck", MODULES, error="fetching: no such host", code=1), Path("program"))
    with pytest.raises(LocalError, match="names no module"):
        audit.audit_program(stub("govulncheck"), Path("program"))


DIGESTS = "sha256:" + "1" * 64, "sha256:" + "2" * 64
COMPOSE = """services:
  api:
    image: bronze:0.1.0
  nats:
    image: nats:2.15.1-alpine
  tempo:
    image: grafana/tempo:3.0.3 # a comment
"""


def test_images_are_pinned_by_digest(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but our own, which is built. A second call renews the digests."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE)
    for digest in DIGESTS:
        stub("docker", digest)
        images.pin_images(lambda _: None, (file,))
        pinned = COMPOSE.replace("-alpine", f"-alpine@{digest}").replace("3.0.3", f"3.0.3@{digest}")
        assert file.read_text() == pinned


@pytest.mark.parametrize(("output", "code"), [("", 1), ("no digest", 0)])
def test_nothing_is_written_if_a_digest_is_missing(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, output: str, code: int
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE)
    stub("docker", output, error="no such host", code=code)
    with pytest.raises(LocalError, match=r"digest of nats:2\.15\.1-alpine could not be looked up: no such host"):
        images.pin_images(lambda _: None, (file,))
    assert file.read_text() == COMPOSE


def test_every_image_would_be_pinned() -> None:
    """The pattern finds each image in compose.yaml, and the Dockerfile's."""
    compose, dockerfile = (file.read_text() for file in images.FILES)
    assert len(images.IMAGE.findall(compose)) == compose.count("  image: ") - 1  # one is ours
    assert len(images.IMAGE.findall(dockerfile)) == 1
