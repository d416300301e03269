"""Unsent telemetry of exporter layers that the collector no longer uses.

Each exporter of a layer keeps its queue in its own file. The file stays when the layer is no longer used, and is sent
when the layer is used again. It is a bbolt database, which the collector locks while it uses it.
"""

import fcntl
import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from local.builds import Built
from local.exporters import every_layer, named
from local.programs import LocalError

READ_S_MAX = 10.0


@dataclass(frozen=True)
class Unsent:
    """A queue that is not sent: the number of requests in it, and their size."""

    layer: str
    requests: int
    size_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.layer} is not in use, and its queue has {self.requests:,} unsent requests "
            f"({self.size_bytes / 1e6:,.3f} MB); they are sent when the layer is used again"
        )


def unsent(folder: Path, layers: Iterable[str], built: Built) -> list[Unsent]:
    """The queues in a folder that are not empty and belong to none of these layers."""
    in_use = {queue for layer in layers for queue in _queues(layer)}
    owners = {queue: layer for layer in every_layer() for queue in _queues(layer)}
    found = []
    for file in sorted(folder.glob("exporter_*")):
        if file.name not in in_use and not _locked(file) and (metadata := _metadata(file, built.bbolt)):
            requests, size_bytes = _sizes(metadata)
            if requests:
                found.append(Unsent(owners.get(file.name, file.name), requests, size_bytes))
    return found


def _queues(layer: str) -> list[str]:
    """The names of the files in which the exporters of a layer keep their queues."""
    signal = layer.partition("/")[0]
    ids = (exporter.partition("/") for exporter in named(layer)["exporter"])
    return [_sanitized(f"exporter_{kind}_{name}_{signal}") for kind, _, name in ids]


def _sanitized(name: str) -> str:
    """A file name, escaped as in the collector's file storage."""
    return re.sub(r"[^A-Za-z0-9._-]", lambda match: f"~{ord(match[0]):04X}", name)


def _locked(file: Path) -> bool:
    with file.open("rb") as database:
        try:
            fcntl.flock(database, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _metadata(file: Path, bbolt: Path) -> bytes:
    """The metadata of a queue; empty if it was never used."""
    command = [str(bbolt), "get", str(file), "default", "qmv0", "--format", "hex"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=READ_S_MAX, check=False)
    if outcome.returncode == 0:
        return bytes.fromhex(outcome.stdout)
    reason = outcome.stderr.partition("\n")[0]
    if "not found" in reason:
        return b""
    raise LocalError(f"{file} is a queue that cannot be read ({reason}): delete it, which loses the telemetry in it")


def _sizes(metadata: bytes) -> tuple[int, int]:
    """Requests and bytes, from the collector's `PersistentMetadata`, a protobuf message.

    Its fields are fixed64 and omitted if 0: 2 bytes_size, 3 read_index, 4 write_index, and 5, packed, the requests
    that were being sent.
    """
    values, position = dict.fromkeys(range(1, 5), 0), 0
    while position < len(metadata) and (number := metadata[position] >> 3) in values:
        (values[number],) = struct.unpack_from("<q", metadata, position + 1)
        position += 9
    being_sent = max(0, len(metadata) - position) // 8
    return values[4] - values[3] + being_sent, values[2]
