"""The backends that the tests of the pipeline share. Each test starts its own collectors."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from local import programs, servers
from local.builds import Built, build_all
from local.programs import LOOPBACK
from tests.pipeline.rig import Rig, as_in_a_role


@pytest.fixture(scope="session")
def built() -> Built:
    return build_all()


@pytest.fixture(scope="session")
def scrape_port() -> int:
    """The port at which Prometheus scrapes the layer metrics/prometheus-scrape."""
    return programs.free_ports()


@pytest.fixture(scope="session")
def prometheus(built: Built, scrape_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Prometheus."""
    state = tmp_path_factory.mktemp("prometheus")
    port = programs.free_ports()
    targets = {"collector-exporter": [scrape_port]}
    with programs.start(servers.prometheus(state, port, targets, executable=built.prometheus), state / "log"):
        yield f"http://{LOOPBACK}:{port}"


@pytest.fixture(scope="session")
def zipkin(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Zipkin."""
    port = programs.free_ports()
    log: Path = tmp_path_factory.mktemp("zipkin") / "log"
    with programs.start(servers.zipkin(port, "test", jar=built.zipkin), log):
        yield f"http://{LOOPBACK}:{port}"


@pytest.fixture(scope="session")
def port() -> int:
    """The first port of the collectors, which run one after the other."""
    return programs.free_ports(servers.COLLECTOR_PORTS)


@pytest.fixture
def rig(
    built: Built,
    prometheus: str,
    scrape_port: int,
    port: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Rig:
    as_in_a_role(monkeypatch)
    return Rig(built, prometheus, partial(request.getfixturevalue, "zipkin"), scrape_port, port, tmp_path)
