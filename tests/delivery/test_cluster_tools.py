"""What the faults of a cluster stand on: the network stops what it should, the disk forgets what it should, and the
checker of histories refuses what no order explains.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from local import programs
from local.programs import LOOPBACK
from tests.delivery.cluster import history
from tests.delivery.cluster.disk import AVAILABLE, Disk
from tests.delivery.cluster.network import Network

NAMED = b'INFO {"server_name":"%s"}\r\n'
WRITE = """
import os, sys
for name, flags, synced in ("never", 0, False), ("fsync", 0, True), ("o_sync", os.O_SYNC, False):
    file = os.open(f"{sys.argv[1]}/{name}", os.O_CREAT | os.O_WRONLY | flags)
    os.write(file, b"before")
    if synced:
        os.fsync(file)
        os.write(file, b" and after")
os.truncate(f"{sys.argv[1]}/old", 2)
os.rename(f"{sys.argv[1]}/old", f"{sys.argv[1]}/new")
"""


async def test_the_network_stops_one_direction() -> None:
    """What one server says does not reach another one until that is healed, while it hears what the other one says."""
    got: asyncio.Queue[bytes] = asyncio.Queue()
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(writer)
        writer.write(NAMED % b"b")
        while line := await reader.readline():
            got.put_nowait(line)
        writer.close()

    ports = programs.free_ports(2)
    server = await asyncio.start_server(listen, LOOPBACK, ports)
    async with asyncio.timeout(30), server:
        with Network(str.upper) as network:
            network.add("B", ports + 1, ports)
            reader, writer = await asyncio.open_connection(LOOPBACK, ports + 1)
            assert await reader.readline() == NAMED % b"b"
            writer.write(NAMED % b"a")
            assert await got.get() == NAMED % b"a"
            network.stop([("A", "B")])
            writer.write(b"late\n")
            (await accepted.get()).write(b"heard\n")
            assert await reader.readline() == b"heard\n"
            assert got.empty()
            network.heal()
            assert await got.get() == b"late\n"
            network.reset()
            assert await reader.read() == b""
            writer.close()


@pytest.mark.skipif(not AVAILABLE, reason="it needs root and /dev/fuse")
def test_the_disk_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """Power loss takes back bytes, not names. A full disk takes no longer files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "old").write_text("kept")
    with Disk(folder) as disk:

        def python(code: str) -> int:
            return subprocess.run([*disk.command, sys.executable, "-c", code, folder], check=False).returncode

        assert python(WRITE) == 0
        assert disk.lose_power() == 3
        contents = {file.name: file.read_text() for file in folder.iterdir()}
        assert contents == {"never": "", "fsync": "before", "o_sync": "before", "new": "kept"}
        append = "import os, sys; os.write(os.open(f'{sys.argv[1]}/new', os.O_WRONLY | os.O_APPEND), b' more')"
        disk.fill(full=True)
        assert python(f"try: {append}\nexcept OSError as error: sys.exit(error.errno)") == 28
        disk.fill(full=False)
        assert python(append) == 0
        assert disk.lose_power() == 1
        assert (folder / "new").read_text() == "kept"


def test_history_that_no_order_explains_is_found(tmp_path: Path) -> None:
    """Two writers that replace the same position, a read of what was replaced before: not linearizable. An append
    without an answer may have had its effect or not.
    """

    def operation(number: int, called: int, returned: int, kind: str, **of: int) -> str:
        return json.dumps(
            {"process": number, "register": "lane", "kind": kind, "called": called, "returned": returned, **of}
        )

    def found(*operations: str) -> list[str]:
        file = tmp_path / "history"
        file.write_text("\n".join(operations))
        return history.not_linearizable(history.read([file]))

    first = operation(1, 1, 2, "written", expected=0, value=5)
    assert found(first, operation(2, 3, 4, "read", value=5), operation(2, 5, 6, "refused", expected=0, value=7)) == []
    stale = operation(2, 3, 4, "read", value=0)
    assert found(first, stale) == ["lane"]
    assert history.not_linearizable(history.writes(history.read([tmp_path / "history"]))) == []
    assert found(first, operation(2, 3, 4, "written", expected=0, value=7)) == ["lane"]
    assert found(first, operation(2, 3, 4, "refused", expected=5, value=7)) == ["lane"]
    unknown = operation(2, 3, history.NEVER_NS, "unknown", expected=5, value=7)
    assert found(first, unknown, operation(1, 4, 5, "read", value=7), operation(1, 6, 7, "read", value=7)) == []
    assert found(first, unknown, operation(1, 4, 5, "read", value=7), operation(1, 6, 7, "read", value=5)) == ["lane"]
    assert found(first, unknown, operation(1, 4, 5, "written", expected=5, value=6)) == []
    twice = operation(3, 6, history.NEVER_NS, "unknown", expected=7, value=9)
    assert found(first, unknown, twice, operation(1, 8, 9, "read", value=9)) == []
