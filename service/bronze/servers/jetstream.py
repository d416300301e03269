"""The part of JetStream that the chain protocol needs: the only module that imports the NATS client.

Some requests are written by hand, because nats-py 2.16 has no call for them (atomic batches, batched direct gets, last
messages of many subjects) or loses data that the protocol needs (it truncates stored times to microseconds and drops
the server's clock).
Sources: NATS ADR-8 (KV), ADR-31 (direct get), ADR-43 (message TTL), ADR-50 (atomic batch publishing).

Every wait is bounded. A timeout means "unknown", never "no": the server may apply a request after its caller gave up.
"""

import asyncio
import base64
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

import nats
from bronze.errors import Gone, Misconfigured, NotPermitted, Outage, Unavailable
from bronze.protocol.message import Message
from bronze.queue_servers import QueueServers

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 2.0
#: Per server.
CONNECT_TIMEOUT_S = 2.0
#: A server that leaves two of these questions unanswered hangs, or the network lost it: another one is used.
PING_INTERVAL_S = 4
#: The server writes and syncs a large batch before it answers the commit.
COMMIT_TIMEOUT_S = 10
#: Of a stream that is copied: the size of a piece, and how long one may take; the last one ends the whole copy.
COPY_CHUNK_BYTES = 512 * 2**10
COPY_TIMEOUT_S = 120
#: A purge that leaves at most this is made by subject. Several times as much as the server has in a block (8 MiB),
#: since the size is estimated from the mean of the messages.
PURGE_BY_SUBJECT_BYTES = 32 * 2**20
#: The server gives up a restore that gets nothing for as long (nats-server, `processStreamRestore`).
RESTORE_HEARD_S_MAX = 5.0
RESTORE_RETRY_S = 0.05
#: Subjects whose last messages one request reads.
LAST_MAX = 1_000
#: One of so many messages of a batch requests an answer, which the server sends after it has written them. So the
#: messages in flight stay far below the 128 MiB of a stream's inbox, above which the server drops messages silently.
BATCH_ANSWER_MESSAGES = 16

EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"
#: Headers of messages that the server has sent as an answer, if one was stored: nobody publishes them.
ANSWERED_STREAM = "Nats-Stream"
ANSWERED_STATUS = "Status"

#: A consumer that reads headers adds it to them.
PAYLOAD_SIZE = "Nats-Msg-Size"
#: When the server deletes a consumer that reads headers and whose process died, in nanoseconds.
HEADERS_CONSUMER_NS = 10 * 10**9

#: The status if no server answers a request.
NO_RESPONDERS = "503"

LOST_MAJORITY = "the queue's cluster has no leader: most of its servers do not run, or do not reach each other"

#: Headers that a direct get adds to the stored ones.
_ANSWER_HEADERS = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
        "Nats-UpTo-Sequence",
    }
)

#: How the server reports a subject that the user may not use; the client makes it lower case.
_DENIED = re.compile(r'permissions violation for (?:publish|subscription) to "([^" ]+)')
#: Subjects without permission that are kept.
DENIED_MAX = 1_000

# err_code of the server's API errors
WRONG_LAST_SEQUENCE = 10071
SUBJECT_WRITE_IN_FLIGHT = 10164
STREAM_FULL = 10077
TOO_MANY_OPEN_BATCHES = 10210
WRONG_STREAM = 10060
NO_MESSAGE = 10037
STREAM_NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
STREAM_NOT_FOUND = 10059
SEALED = 10109
MESSAGE_TOO_LARGE = 10054
#: The cluster has no leader: most of its servers do not run, or do not reach each other.
NO_MAJORITY = 10008
#: The cluster has too few servers now for the replicas of a new stream.
TOO_FEW_SERVERS = 10005


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be stored."""

    subject: str
    payload: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as its leader sees it now; `now` is the server's clock.

    A sealed stream accepts no messages and deletes none. `deleted` messages are missing between the first and the last.
    """

    name: str
    subjects: Sequence[str]
    metadata: Mapping[str, str]
    sealed: bool
    first: int
    last: int
    messages: int
    bytes: int
    deleted: int
    now: str


@dataclass(frozen=True, slots=True)
class Header:
    """The headers of a stored message."""

    sequence: int
    headers: Mapping[str, str]


class Missing(Unavailable):
    """No stream has this name or subject now, and nothing was done. It may come back, or be replaced."""

    def __init__(self, name: str) -> None:
        super().__init__(Outage.QUEUE_AWAY, f"the queue has no stream with the name or subject {name}")


class ApiError(Exception):
    """A refusal by the server, with its `err_code`."""

    def __init__(self, err_code: int, code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.err_code = err_code
        self.code = code


class _Unencrypted(nats.errors.Error):
    def __str__(self) -> str:
        return "it does not encrypt the connection, but BRONZE_NATS_URL has tls://"


class _Client(Client):
    """The connection. It reconnects whatever ended it, and keeps the subjects that the server does not permit."""

    def __init__(self, servers: QueueServers) -> None:
        super().__init__()
        self._servers = servers
        self._opened = False
        self._refusals = 0
        self._denied: dict[str, None] = {}

    async def open(self, name: str) -> None:
        """Raises `Unavailable` if no server answers in time, and `Misconfigured` if all that answer refuse."""
        servers = self._servers
        try:
            # the client itself would retry for ever
            async with asyncio.timeout(CONNECT_TIMEOUT_S * len(servers.urls)):
                await self.connect(
                    list(servers.urls),
                    name=name,
                    user=servers.user and (lambda: str(servers.user)),
                    password=servers.user and servers.read_password,
                    tls=servers.tls_context(),
                    inbox_prefix=servers.inbox_prefix,
                    connect_timeout=CONNECT_TIMEOUT_S,  # type: ignore[arg-type]
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=2,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]
                    pending_size=0,  # a request without a connection fails at once, and is not sent after we gave up
                    error_cb=self._report,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            cause = self.last_error or error
            if reason := self._refusal(cause):
                raise Misconfigured(reason) from error
            raise Unavailable(
                Outage.QUEUE_AWAY, f"the queue at {servers} does not answer: {cause or type(cause).__name__}"
            ) from error
        self._opened = True

    def take_denied(self, *subjects: str) -> str | None:
        """One of these subjects that the server has not permitted; it is forgotten then. None if there is none."""
        for subject in map(str.lower, (*subjects, f"{self._servers.inbox_prefix}.")):
            for denied in self._denied:
                if denied == subject or (subject.endswith(".") and denied.startswith(subject)):
                    del self._denied[denied]
                    return denied
        return None

    async def _report(self, error: Exception) -> None:
        log.warning("connection to the queue: %s", error or type(error).__name__)
        if isinstance(error, ssl.SSLError) and self._transport:
            # asyncio never says that a connection is closed whose handshake failed, and nats-py would wait for that
            self._transport.close()  # type: ignore[no-untyped-call]
            self._transport = None
        if match := _DENIED.search(str(error)):
            if len(self._denied) >= DENIED_MAX:
                self._denied.clear()
            self._denied[match[1]] = None
        if not self._opened and (reason := self._refusal(error)):
            self._refusals += 1
            if self._refusals == len(self._servers.urls):
                raise Misconfigured(reason)

    def _refusal(self, error: Exception) -> str | None:
        """What is wrong with the settings if a server or its certificate was refused; None for other errors."""
        servers, reason = self._servers, None
        if "authorization violation" in str(error).lower():
            reason = (
                f"it refuses the user {servers.user!r} or its password: check BRONZE_NATS_USER and "
                "BRONZE_NATS_PASSWORD_FILE"
                if servers.user
                else "it asks for a user: set BRONZE_NATS_USER and BRONZE_NATS_PASSWORD_FILE"
            )
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate is refused ({error.verify_message}): check the address and BRONZE_NATS_CA_FILE"
        elif isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            reason = f"it refuses the certificate of this process ({error.reason}): check BRONZE_NATS_CERT_FILE"
        elif isinstance(error, _Unencrypted):
            reason = str(error)
        return reason and f"the queue at {servers}: {reason}"

    async def _connect_to_server(self, s: Any) -> None:
        if self._transport:
            # of an attempt that the server refused: nats-py leaves its socket open
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    def _connect_command(self) -> bytes:
        """The first command, with the credentials. Whether to encrypt is the server's choice in this protocol."""
        if self._servers.tls and not self._server_info.get("tls_required"):
            raise _Unencrypted
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        """An error that the server reports. If it ends the connection, the server closes it, and we reconnect.

        The method of nats-py closes it for ever, for example when the server's configuration gets other users.
        """
        await self._error_cb(nats.errors.Error(f"nats: {err_msg}"))


class JetStream:
    """A connection to one named server or cluster. All calls raise `Unavailable` if there is no answer in time.

    They raise `NotPermitted` if the server does not permit them to the user of this process.
    """

    def __init__(self, client: _Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, servers: QueueServers, *, server_name: str | None = None, name: str = "bronze") -> Self:
        """Connect; after that, the client reconnects by itself.

        `server_name`: of the server, or of its cluster. Raises `Unavailable` if no server answers, and `Misconfigured`
        if it has another name or refuses.
        """
        servers.check()
        client = _Client(servers)
        jetstream = cls(client)
        try:
            await client.open(name)
            if server_name not in {None, jetstream.server_name, jetstream.cluster_name}:
                of_cluster = f" in the cluster {jetstream.cluster_name!r}" if jetstream.cluster_name else ""
                raise Misconfigured(
                    f"the server at {servers} has the name {jetstream.server_name!r}{of_cluster}, but "
                    f"BRONZE_NATS_SERVER_NAME requires {server_name!r}"
                )
        except BaseException:
            await client.close()
            raise
        return jetstream

    @property
    def address(self) -> str:
        """The address of the server that the connection leads to; empty without a connection."""
        url = self._client.connected_url
        return url.geturl() if url else ""

    @property
    def server_name(self) -> str | None:
        name: str | None = self._client._server_info.get("server_name")  # noqa: SLF001 - nats-py has no public way
        return name

    @property
    def cluster_name(self) -> str | None:
        """None if the server is not in a cluster."""
        name: str | None = self._client._server_info.get("cluster")  # noqa: SLF001 - as above
        return name

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def close(self) -> None:
        await self._client.close()

    async def _request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Msg:
        try:
            return await self._client.request(
                subject, payload, timeout=timeout_s, headers=dict(headers) if headers else None
            )
        except nats.errors.MaxPayloadError:
            raise
        except nats.errors.NoRespondersError as error:
            raise Missing(subject) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._no_answer(error, subject) from error

    def _no_answer(self, error: Exception, *subjects: str) -> Unavailable:
        """The error of a request that got no answer: the server reports only to the connection what it does not permit.

        A connection without permission for a subject gets no answer to a request either.
        """
        if denied := self._client.take_denied(*subjects):
            return NotPermitted(f"the queue does not permit its user to use the subject {denied} (docs/security.md)")
        return Unavailable(Outage.QUEUE_AWAY, f"the queue does not answer: {error or type(error).__name__}")

    async def api(self, call: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One JetStream API call, such as `STREAM.INFO.name`; raises `ApiError`."""
        reply = await self._request(f"$JS.API.{call}", msgspec.json.encode(payload) if payload else b"")
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        _raise_error(answer)
        return answer

    async def _call(self, call: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A call that the server has no permanent reason to refuse: a refusal raises `Unavailable`."""
        try:
            return await self.api(call, payload)
        except ApiError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise Missing(call.rpartition(".")[2]) from error
            if error.err_code == NO_MAJORITY:
                raise Unavailable(Outage.QUEUE_AWAY, LOST_MAJORITY) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses {call}: {error}") from error

    # --- streams

    async def stream_names(self, subject: str) -> list[str]:
        """The names of the streams with a subject; more than one only for wildcards, or if streams overlap."""
        names: list[str] = []
        while True:
            page = await self._call("STREAM.NAMES", {"subject": subject, "offset": len(names)})
            found = page.get("streams") or []
            names += found
            if not found or len(names) >= page["total"]:
                return names

    async def state(self, stream: str) -> StreamState:
        info = await self._call(f"STREAM.INFO.{stream}")
        if not _leader(info, self.server_name):
            # a replica answers then, which may lack messages
            raise Unavailable(Outage.QUEUE_AWAY, f"the stream {stream} has no leader: {LOST_MAJORITY}")
        state = info["state"]
        return StreamState(
            name=stream,
            subjects=info["config"].get("subjects") or [],
            metadata=info["config"].get("metadata") or {},
            sealed=info["config"].get("sealed", False),
            first=state["first_seq"],
            last=state["last_seq"],
            messages=state["messages"],
            bytes=state["bytes"],
            deleted=state.get("num_deleted", 0),
            now=info["ts"],
        )

    async def cluster_of(self, stream: str) -> Mapping[str, Any]:
        """The leader of a stream, if it has one, and the replicas that follow it, as STREAM.INFO describes them."""
        info = await self._call(f"STREAM.INFO.{stream}")
        return {**info.get("cluster", {}), "leader": _leader(info, self.server_name)}

    async def subjects(self, stream: str, subject: str) -> list[str]:
        """The subjects that have messages and match a subject with wildcards; at most 100,000."""
        info = await self._call(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
        return sorted(info["state"].get("subjects") or ())

    async def create_stream(self, config: Mapping[str, Any]) -> None:
        """Create a stream; raises `ApiError` if the name or a subject is in use."""
        try:
            await self.api(f"STREAM.CREATE.{config['name']}", config)
        except ApiError as error:
            if error.err_code == NO_MAJORITY:
                raise Unavailable(Outage.QUEUE_AWAY, LOST_MAJORITY) from error
            if error.err_code == TOO_FEW_SERVERS:
                raise Unavailable(
                    Outage.QUEUE_AWAY,
                    f"too few servers of the queue run for {config['num_replicas']} replicas of {config['name']}",
                ) from error
            raise

    async def update_stream(self, stream: str, **changes: object) -> bool:
        """Change the given options of a stream's configuration; whether they were different."""
        config = (await self._call(f"STREAM.INFO.{stream}"))["config"]
        if config.items() >= changes.items():
            return False
        await self._call(f"STREAM.UPDATE.{stream}", {**config, **changes})
        return True

    async def raise_replicas(self, stream: str, replicas: int) -> bool:
        """Give a stream this number of replicas if it has fewer; whether it had. Raises `ApiError`."""
        config = (await self._call(f"STREAM.INFO.{stream}"))["config"]
        if config["num_replicas"] >= replicas:
            return False
        await self.api(f"STREAM.UPDATE.{stream}", {**config, "num_replicas": replicas})
        return True

    async def seal(self, stream: str) -> None:
        """Make a stream refuse all further messages, permanently.

        The commit of a batch that is open at that moment is refused; acknowledged messages stay.
        """
        await self.update_stream(stream, sealed=True)

    async def delete_stream(self, stream: str) -> None:
        """Delete a stream with all its messages, if it exists."""
        with suppress(Missing):
            await self._call(f"STREAM.DELETE.{stream}")

    @asynccontextmanager
    async def gone_if_replaced(self, stream: str, subject: str) -> AsyncIterator[None]:
        """Around requests to a stream by its name: raises `Gone` if the stream is missing and was replaced."""
        try:
            yield
        except Missing as error:
            if await self.is_replaced(stream, subject):
                raise replaced_error(stream) from error
            raise

    async def is_replaced(self, stream: str, subject: str) -> bool:
        """Whether a missing stream will not come back: other streams have its subjects now."""
        names = await self.stream_names(subject)
        return bool(names) and stream not in names

    async def copy_stream(self, stream: str, target: "JetStream", **changes: object) -> None:
        """Copy a stream, with the sequences and times of its messages, to another queue; `changes` are options that
        the copy has. What is stored after the beginning is not in it. Raises `ApiError`.
        """
        inbox = self._client.new_inbox()
        try:
            subscription = await self._client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
            try:
                request = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": COPY_CHUNK_BYTES}
                taken = await self.api(f"STREAM.SNAPSHOT.{stream}", request)
                config, last = {**taken["config"], **changes}, taken["state"]["last_seq"]
                if not taken["state"]["messages"]:  # there is nothing to send, and the server cannot restore nothing
                    await target.create_stream({**config, **({"first_seq": last + 1} if last else {})})
                    return
                begun = {"config": config, "state": taken["state"]}
                to = (await target.api(f"STREAM.RESTORE.{stream}", begun))["deliver_subject"]
                while True:
                    chunk = await subscription.next_msg(timeout=COPY_TIMEOUT_S)
                    status = (chunk.headers or {}).get("Status")
                    if status not in {None, "204"}:
                        raise Unavailable(Outage.QUEUE_AWAY, f"the copy of {stream} was broken off: {status}")
                    ended = not chunk.data and not chunk.reply  # a piece may be empty, too
                    if chunk.data or ended:
                        await target._send_chunk(to, chunk.data)  # noqa: SLF001 - as self
                    if ended:
                        return
                    if chunk.reply:
                        await self._client.publish(chunk.reply)
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._no_answer(error, f"$JS.API.STREAM.SNAPSHOT.{stream}") from error

    async def _send_chunk(self, subject: str, chunk: bytes) -> None:
        """Send a piece of a copy to the server that restores the stream.

        In a cluster, the subject can reach us before the server that we are connected to knows who listens to it
        (servers have several connections to each other). A piece without responders reached nobody: it is sent again.
        """
        until = asyncio.get_running_loop().time() + RESTORE_HEARD_S_MAX
        while True:
            try:
                reply = await self._request(subject, chunk, timeout_s=COPY_TIMEOUT_S)
            except Missing as error:
                if asyncio.get_running_loop().time() > until:
                    raise Unavailable(Outage.QUEUE_AWAY, "the server that restored the stream broke it off") from error
                await asyncio.sleep(RESTORE_RETRY_S)
            else:
                break
        if reply.data:
            _raise_error(msgspec.json.decode(reply.data))

    async def purge_below(self, stream: str, sequence: int) -> None:
        """Delete the messages below a sequence; the message at the sequence and all later ones stay.

        If a purge leaves no message in the server's last block of messages, nats-server (2.15.3, `compactLocked` in
        filestore.go) does not move the begin of the block. The next purge subtracts the same messages again, and as
        many that are there become hidden. This happens on a replica that returns without the message at the sequence.
        A purge by subject does not have this fault, but reads all messages that stay: it is used if they are few.
        """
        state = await self.state(stream)
        request: dict[str, object] = {"seq": sequence}
        few = (state.last - sequence) * state.bytes <= PURGE_BY_SUBJECT_BYTES * state.messages
        if few and sequence <= state.last:
            (request["filter"],) = state.subjects
        await self._call(f"STREAM.PURGE.{stream}", request)

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Delete one message, if it exists."""
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except ApiError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise Missing(stream) from error
            if error.err_code == NO_MAJORITY:
                raise Unavailable(Outage.QUEUE_AWAY, LOST_MAJORITY) from error
            if await self.get(stream, sequence) is not None:
                raise Unavailable(Outage.QUEUE_AWAY, f"the queue cannot delete message {sequence}: {error}") from error

    # --- writing

    async def publish(self, message: Outgoing) -> int:
        """Store one message durably and return its sequence; raises `ApiError`."""
        reply = await self._request(message.subject, message.payload, message.headers)
        return _ack(reply)

    async def publish_batch(
        self,
        messages: Iterable[Outgoing],
        count: int,
        *,
        in_time: Callable[[], bool] = lambda: True,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> int:
        """Store all `count` messages or none, contiguously, and return the last sequence; raises `ApiError`.

        At most 1,000 (ADR-50). The server reports a conflict at the commit, which is not sent if `in_time` is false.
        """
        batch = uuid4().hex
        for number, message in enumerate(messages, start=1):
            headers = {**message.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if number == count:
                if not in_time():
                    break
                headers["Nats-Batch-Commit"] = "1"
                return _ack(await self._request(message.subject, message.payload, headers, commit_timeout_s))
            if number % BATCH_ANSWER_MESSAGES == 1:
                timeout_s = REQUEST_TIMEOUT_S if number == 1 else commit_timeout_s
                reply = await self._request(message.subject, message.payload, headers, timeout_s)
                if reply.data:
                    _raise_error(msgspec.json.decode(reply.data))
                continue
            try:
                await self._client.publish(message.subject, message.payload, headers=headers)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                raise Unavailable(Outage.QUEUE_AWAY, f"the connection to the queue was lost: {error}") from error
        raise Unavailable(Outage.QUEUE_AWAY, "the batch was not finished before its deadline")

    # --- reading, from the leader

    async def get(self, stream: str, sequence: int) -> Message | None:
        """The message at a sequence, from the leader; None if the leader has none."""
        return await self._get(stream, {"seq": sequence})

    async def get_last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject (wildcards are allowed), from the leader; None if the leader has none."""
        return await self._get(stream, {"last_by_subj": subject})

    async def _get(self, stream: str, request: Mapping[str, Any]) -> Message | None:
        try:
            stored = (await self.api(f"STREAM.MSG.GET.{stream}", request))["message"]
        except ApiError as error:
            if error.err_code == NO_MESSAGE:
                return None
            if error.err_code == STREAM_NOT_FOUND:
                raise Missing(stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue cannot look up {request}: {error}") from error
        return Message(
            sequence=stored["seq"],
            subject=stored["subject"],
            time=stored["time"],
            headers=_headers(base64.b64decode(stored.get("hdrs") or "")),
            payload=base64.b64decode(stored.get("data") or ""),
        )

    # --- reading, from any replica, which may lack messages that the leader has

    async def has(self, stream: str, sequence: int) -> bool:
        """Whether a replica has a message at a sequence or later."""
        reply = await self._request(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode({"seq": sequence, "next_by_subj": ">"})
        )
        return (reply.headers or {}).get("Status") is None

    async def read(self, stream: str, first: int, *, messages_max: int, bytes_max: int) -> list[Message]:
        """The messages of a replica from a sequence on, in order, within bounds; at least the first one."""
        request = {
            "seq": first,
            "batch": messages_max,
            "max_bytes": bytes_max,
            "next_by_subj": ">",
        }
        return (await self._direct(stream, request))[0]

    async def read_subject(
        self, stream: str, subject: str, begin: int | str, *, messages_max: int, bytes_max: int
    ) -> tuple[list[Message], int]:
        """As `read`, for one subject (wildcards are allowed), from a sequence or a time on.

        Returns also how many messages follow.
        """
        request = {
            ("start_time" if isinstance(begin, str) else "seq"): begin,
            "batch": messages_max,
            "max_bytes": bytes_max,
            "next_by_subj": subject,
        }
        return await self._direct(stream, request)

    async def last_messages(self, stream: str, subjects: Sequence[str]) -> list[Message]:
        """The last message of each subject that has one (at most 1,000), as one replica has them at one moment.

        Wildcards are allowed.
        """
        return (await self._direct(stream, {"multi_last": list(subjects), "batch": LAST_MAX}))[0]

    async def read_headers(self, stream: str, first: int, *, messages_max: int) -> list[Header]:
        """The headers of a replica's messages from a sequence on, in order, without their payloads.

        Only a consumer can leave out payloads; each read has one of its own, which the server deletes if we do not.
        """
        consumer = uuid4().hex
        config = {
            "name": consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "ack_policy": "none",
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": HEADERS_CONSUMER_NS,
        }
        created = await self._call(
            f"CONSUMER.CREATE.{stream}.{consumer}", {"stream_name": stream, "config": config, "action": "create"}
        )
        try:
            return await self._next_headers(stream, consumer, min(messages_max, created["num_pending"]))
        finally:
            with suppress(Unavailable):
                await self._call(f"CONSUMER.DELETE.{stream}.{consumer}")

    async def _next_headers(self, stream: str, consumer: str, count: int) -> list[Header]:
        client, found = self._client, list[Header]()
        inbox, subject = client.new_inbox(), f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        try:
            subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
            try:
                request = {"batch": count, "no_wait": True}
                await client.publish(subject, msgspec.json.encode(request), reply=inbox)
                while len(found) < count:
                    message = await subscription.next_msg(timeout=REQUEST_TIMEOUT_S)
                    headers = message.headers or {}
                    if "Status" in headers:  # some were purged meanwhile
                        break
                    stored = {name: value for name, value in headers.items() if name != PAYLOAD_SIZE}
                    found.append(Header(message.metadata.sequence.stream, stored))
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._no_answer(error, subject) from error
        return found

    async def _direct(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Message], int]:
        """A batched direct get (ADR-31): its messages, and how many follow them."""
        client = self._client
        inbox, subject = client.new_inbox(), f"$JS.API.DIRECT.GET.{stream}"
        messages: list[Message] = []
        try:
            subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
            try:
                await client.publish(subject, msgspec.json.encode(request), reply=inbox)
                while True:
                    reply = await subscription.next_msg(timeout=REQUEST_TIMEOUT_S)
                    headers = dict(reply.headers or {})
                    status = headers.get("Status")
                    if status in {"204", "404"}:
                        return messages, int(headers.get("Nats-Num-Pending", 0))
                    if status == NO_RESPONDERS:
                        raise Missing(stream)
                    if status is not None:
                        raise Unavailable(
                            Outage.QUEUE_AWAY,
                            f"the queue cannot read the stream {stream}: {status} {headers.get('Description', '')}",
                        )
                    messages.append(
                        Message(
                            sequence=int(headers["Nats-Sequence"]),
                            subject=headers["Nats-Subject"],
                            time=headers["Nats-Time-Stamp"],
                            headers={name: value for name, value in headers.items() if name not in _ANSWER_HEADERS},
                            payload=reply.data,
                        )
                    )
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._no_answer(error, subject) from error


def replaced_error(stream: str) -> Gone:
    return Gone(f"the stream {stream} was replaced by another one: restart this process")


def _leader(info: Mapping[str, Any], server_name: str | None) -> str:
    """The server that leads a stream; empty if none does. A single server does not mention itself."""
    leader: str = info.get("cluster", {"leader": server_name or "nats"}).get("leader", "")
    return leader


def _raise_error(answer: Mapping[str, Any]) -> None:
    error = answer.get("error")
    if error:
        raise ApiError(error.get("err_code", 0), error.get("code", 0), error.get("description", ""))


def _ack(reply: Msg) -> int:
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    _raise_error(answer)
    sequence: int = answer["seq"]
    return sequence


def _headers(block: bytes) -> dict[str, str]:
    """A stored header block: `NATS/1.0`, then `name: value` lines."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
