"""TLS between a process and the queue, with an authority of the test's own."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from bronze.errors import Misconfigured
from bronze.queue_servers import QueueServers
from bronze.servers.jetstream import JetStream
from local import programs, servers
from local.programs import LOOPBACK

PASSWORD = "of-the-test"


@dataclass(frozen=True)
class Encrypted:
    """A nats-server with TLS, and the files of the certificates."""

    port: int
    ca_file: Path
    cert_file: Path
    key_file: Path

    def servers(self, *files: Path, host: str = LOOPBACK, scheme: str = "tls") -> QueueServers:
        """With the certificates of the authority and of the process, and its key."""
        return QueueServers((f"{scheme}://{host}:{self.port}",), "admin", PASSWORD, *files)


@pytest.fixture(params=[False, True], ids=["server only", "both sides"])
def encrypted(request: pytest.FixtureRequest, tmp_path: Path, nats_name: str) -> Iterator[Encrypted]:
    """`both sides`: the server asks for a certificate, too."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, host in (("server", LOOPBACK), ("client", "client.test")):
        issued = authority.issue_cert(host)
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    files = {kind: json.dumps(str(tmp_path / file)) for kind, file in (("cert", "server.pem"), ("key", "server.key"))}
    asks = f"verify: true, ca_file: {json.dumps(str(tmp_path / 'ca.pem'))}" if request.param else ""
    more = f"""
tls {{ cert_file: {files["cert"]}, key_file: {files["key"]}, {asks} }}
authorization {{ users: [{{user: admin, password: "{PASSWORD}"}}] }}
"""
    port = programs.free_ports()
    with ExitStack() as stack:
        stack.enter_context(
            programs.start(servers.nats(tmp_path / "nats", port, nats_name, more=more), tmp_path / "nats.log")
        )
        yield Encrypted(port, tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")


async def test_the_server_proves_its_name_and_the_process_its_own(
    encrypted: Encrypted, request: pytest.FixtureRequest
) -> None:
    """A certificate of an unknown authority, or of another name, is a wrong setting, and so is one that is missing."""
    ours = (encrypted.ca_file, encrypted.cert_file, encrypted.key_file)
    jetstream = await JetStream.connect(encrypted.servers(*ours))
    try:
        assert await jetstream.stream_names(">") == []
    finally:
        await jetstream.close()
    for scheme in ("tls", "nats"):  # the server asks for TLS in any case
        with pytest.raises(Misconfigured, match=r"its certificate is refused .*BRONZE_NATS_CA_FILE"):
            await JetStream.connect(encrypted.servers(scheme=scheme))
    with pytest.raises(Misconfigured, match=r"its certificate is refused \(.*mismatch.*localhost"):
        await JetStream.connect(encrypted.servers(*ours, host="localhost"))
    only_ca = encrypted.servers(encrypted.ca_file)
    if "both sides" in request.node.name:
        with pytest.raises(Misconfigured, match=r"refuses the certificate of this process .*BRONZE_NATS_CERT_FILE"):
            await JetStream.connect(only_ca)
    else:
        await (await JetStream.connect(only_ca)).close()


async def test_no_password_is_sent_to_a_server_that_does_not_encrypt() -> None:
    """Such a server, or whoever is between it and the process, only has to leave TLS out of its greeting."""
    received = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = {"server_id": "x", "version": "2.15.1", "max_payload": 1048576, "headers": True}
        writer.write(f"INFO {json.dumps(greeting)}\r\n".encode())
        received.extend(await reader.read(4096))
        writer.close()

    listener = await asyncio.start_server(greet, LOOPBACK, 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        with pytest.raises(Misconfigured, match="does not encrypt the connection"):
            await JetStream.connect(QueueServers((f"tls://{LOOPBACK}:{port}",), "admin", PASSWORD))
    finally:
        listener.close()
        await listener.wait_closed()
    assert bytes(received) == b""


@pytest.mark.parametrize("content", ["", "no certificate"])
async def test_files_that_cannot_be_used_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(Misconfigured, match=f"BRONZE_NATS_CA_FILE.*{file}"):
        await JetStream.connect(QueueServers(("tls://127.0.0.1:1",), ca_file=file))
