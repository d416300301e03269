"""One whole system for all tests, on free ports, with its backends; tests that break something have a branch."""

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
    """The whole system, running: queue, bucket, collector, Prometheus, Zipkin, API and consumer."""
    stack = Stack.create(tmp_path_factory.mktemp("system"), Ports.free(), build_all())
    limits = {"BRONZE_BODY_BYTES_MAX": str(8 * 2**20), "BRONZE_JSON_BODY_BYTES_MAX": str(2**20)}
    system = System(stack, {**SOON, **limits})
    with system.running(*stack.servers), system.running(system.role("api"), system.role("consumer")):
        yield system


@pytest.fixture
def branch(system: System, tmp_path: Path) -> System:
    """A system that a test may break: its queue and its roles are started by the test."""
    own = system.branch(tmp_path / "branch")
    return replace(own, env={**own.env, **NO_EXEMPLARS})


@pytest.fixture
def mark() -> str:
    """What no other test's records have in them."""
    return f"mark-{uuid4().hex[:12]}"
