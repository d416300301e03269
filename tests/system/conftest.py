"""One complete system for all tests, on free ports, with its backends. Tests that break something use a branch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from local.builds import build_all
from local.stack import Ports, Stack
from tests.system.blackbox import NO_EXEMPLARS, SOON, System


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The complete running system: queue, bucket, collector, Prometheus, Zipkin, API and consumer."""
    stack = Stack.create(tmp_path_factory.mktemp("system"), Ports.free(), build_all())
    limits = {"BRONZE_BODY_BYTES_MAX": str(8 * 2**20), "BRONZE_JSON_BODY_BYTES_MAX": str(2**20)}
    system = System(stack, {**SOON, **limits})
    with system.running(*stack.servers), system.running(system.role("api"), system.role("consumer")):
        yield system


@pytest.fixture
def branch(system: System, tmp_path: Path) -> System:
    """A system that a test may break. The test starts its queue and roles."""
    own = system.branch(tmp_path / "branch")
    return replace(own, env={**own.env, **NO_EXEMPLARS})


@pytest.fixture
def mark() -> str:
    """A text that no other test's records contain."""
    return f"mark-{uuid4().hex[:12]}"
