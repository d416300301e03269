"""The real servers as fixtures: on loopback, on free ports, each test with its own data."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_timeout  # type: ignore[import-untyped]

from local import machine, programs, servers
from local.programs import Process
from local.servers import S3Account
from local.watch import leave_nothing

#: What a session starts for the tests of pipeline and system costs CPU until its end, so these come last.
RANKS = {"delivery": 0, "pipeline": 2, "system": 3}
#: The longest files of their folders: first, so that no worker is left with one of them at the end.
LONGEST = (
    "test_kill",
    "test_cluster_controls",
    "test_cluster_faults",
    "test_canary_faults",
    "test_rules_cases",
    "test_data_incidents",
    "test_verify_command",
    "test_parity",
    "test_docs_commands",
    "test_silver",
    "test_rolling_upgrade",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, bool]:
        return RANKS.get(item.path.parent.name, 1), item.path.stem not in LONGEST

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was collected stays until the end: the garbage collector need not look at millions of objects again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start end with the tests, however these end; each worker of pytest-xdist is watched, too."""
    watching = ExitStack()
    watching.enter_context(leave_nothing())
    config.add_cleanup(watching.close)
    config.pluginmanager.register(BusyMachine())


def pytest_report_header() -> str:
    return f"machine: {machine.describe()}"


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> object:
    """The time limit of each test grows with the load, too."""
    limited = settings._replace(timeout=machine.limit_s(settings.timeout))
    done: object = pytest_timeout.pytest_timeout_set_timer(item, limited)
    return done


class BusyMachine:
    """Records tests that failed while the machine was too busy for time limits, and reports them at the end."""

    def __init__(self) -> None:
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and machine.is_too_busy():
            self._failed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._failed:
            terminalreporter.section("the machine was too busy", red=True)
            terminalreporter.line(
                f"These failures may be caused by the machine and not by the code ({machine.describe()}):"
            )
            for test in self._failed:
                terminalreporter.line(f"  {test}")


@pytest.fixture(scope="session")
def s3_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Account]:
    """A running SeaweedFS. Tests that kill it start their own."""
    state = tmp_path_factory.mktemp("s3")
    account = servers.s3_account(state, programs.free_ports(servers.SEAWEEDFS_PORTS))
    with programs.start(servers.seaweedfs(state, account), state / "seaweedfs.log"):
        yield account


@pytest.fixture
def s3_env(s3_account: S3Account, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The bucket's standard variables, also set for this process."""
    for name, value in s3_account.env.items():
        monkeypatch.setenv(name, value)
    return s3_account.env


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test has, so that tests can share a bucket without sharing data."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def nats_name() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def nats(tmp_path: Path, nats_name: str) -> Iterator[Process]:
    """A running nats-server for one test; `nats.program.ports["queue"]` is its port."""
    program = servers.nats(tmp_path / "nats", programs.free_ports(), nats_name)
    with programs.start(program, tmp_path / "nats.log") as process:
        yield process
