"""Every port of the started system, asked as nobody, with a wrong key, from a web page, and as each role."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local.builds import REPOSITORY, build_all
from local.programs import LOOPBACK
from local.stack import Ports, Stack
from tests.system.blackbox import SOON, System
from tests.system.rights import RIGHTS, Right, table


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, int]]]:
    """All programs of `make up`, with their pids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRONZE_WEBHOOK_URL", f"http://{LOOPBACK}:9")
        patch.setenv("BRONZE_WEBHOOK_SECRETS", f"whsec_{'A' * 32}")
        patch.setenv("BRONZE_RETENTION_DAYS", "365")
        stack = Stack.create(tmp_path_factory.mktemp("ports"), Ports.free(), build_all())
        system = System(stack, SOON)
        rest = [system.role(name) for name in ("api", "consumer", "canary", "table", "notify", "retain", "publisher")]
        with system.running(*stack.servers) as servers, system.running(*rest) as roles:
            yield stack, {name: process.pid for name, process in {**servers, **roles}.items()}


def ports(stack: Stack) -> dict[int, tuple[str, str]]:
    return {port: (program.name, use) for program in stack.programs for use, port in program.ports.items()}


def test_no_port_is_unknown(started: tuple[Stack, dict[str, int]]) -> None:
    """Whatever a program or a child of it listens on is declared, on the loopback address, and has its rights."""
    stack, pids = started
    declared = ports(stack)
    listening = set()
    for name, pid in pids.items():
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            for connection in one.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ip, port = connection.laddr
                    ip = ip.removeprefix("::ffff:")  # Java has sockets of both protocols
                    assert (ip, declared.get(port, ("?", "?"))[0]) == (LOOPBACK, name), f"{name} listens on {ip}:{port}"
                    listening.add(declared[port])
    assert listening == set(declared.values())
    assert listening == {(right.program, right.port) for right in RIGHTS}


def test_other_users_reach_no_socket(started: tuple[Stack, dict[str, int]]) -> None:
    _, pids = started
    for name, pid in pids.items():
        for connection in psutil.Process(pid).net_connections("unix"):
            path = Path(str(connection.laddr))
            if path.is_socket():
                closed = any(not place.stat().st_mode & 0o007 for place in (path, *path.parents))
                assert closed, f"{name} listens on {path}"


@pytest.mark.parametrize(
    ("right", "identity"),
    [pytest.param(r, i, id=f"{r.program} {r.port}: {r.what} as {i}") for r in RIGHTS for i in r.tried],
)
def test_a_right_is_of_those_who_have_it(started: tuple[Stack, dict[str, int]], right: Right, identity: str) -> None:
    stack, _ = started
    port = next(port for port, what in ports(stack).items() if what == (right.program, right.port))
    assert right.attempt(stack, port, identity) is (identity in right.who)


def test_the_page_has_the_table() -> None:
    page = (REPOSITORY / "docs" / "security.md").read_text()
    assert table() in page, f"docs/security.md needs this table:\n{table()}"
