"""Models of the queue's and the bucket's servers, as far as the service uses them, and connections to them.

They behave as nats-server and S3: `tests/contract/test_jetstream.py` and `test_bucket.py` run the same tests on both.
"""

import datetime as dt
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bronze.errors import Outage, Unavailable
from bronze.protocol.message import Message, unix_time_s
from bronze.servers import jetstream as js
from bronze.servers.bucket import Head, NoSuchKey
from bronze.servers.jetstream import ApiError, Header, JetStream, Outgoing, StreamState

T = TypeVar("T")

#: The largest number of messages in one batch (ADR-50).
BATCH_MESSAGES_MAX = 1_000
#: Bytes that the server stores in addition to a message's subject, headers and payload.
RECORD_BYTES = 30

# err_code of API errors that the service never gets
BATCH_DISABLED = 10174
BATCH_INCOMPLETE = 10176
BATCH_TOO_LARGE = 10199
TTL_INVALID = 10165
TTL_DISABLED = 10166

_TTL = re.compile(r"(\d+)(s|m|h)?")
_TTL_UNIT_S = {None: 1, "s": 1, "m": 60, "h": 3600}


class Ask(Protocol):
    """Decides when a request is executed, and whether its answer arrives.

    `act` executes it, given the number of newest messages that the answering replica lacks.
    """

    async def __call__(self, name: str, act: Callable[[int], T], *, writes: bool = False) -> T: ...


async def at_once(name: str, act: Callable[[int], T], *, writes: bool = False) -> T:
    """Executes each request at once, on a replica that lacks no messages."""
    return act(0)


def collide(one: str, other: str) -> bool:
    """Whether a subject can match both patterns."""
    tokens, others = one.split("."), other.split(".")
    for token, of_other in zip(tokens, others, strict=False):
        if ">" in {token, of_other}:
            return True
        if token != of_other and "*" not in {token, of_other}:
            return False
    return len(tokens) == len(others)


# --- the queue


class Stream:
    """A stream: the stored messages by sequence, and the time of each batch."""

    def __init__(self, config: Mapping[str, Any], time: Callable[[], str], now_s: Callable[[], float]) -> None:
        self.config = dict(config)
        self.name: str = config["name"]
        #: all messages ever stored, including purged, replaced and expired messages
        self.log: list[Message] = []
        self.commits: list[str] = []
        self.last = 0
        self._purged_below = 0
        self._deleted: set[int] = set()
        self._time = time
        self._now_s = now_s

    @property
    def first(self) -> int:
        """The sequence of the first message, or of the next one if the stream is empty."""
        present = self.present()
        return present[0].sequence if present else self.last and self.last + 1

    @property
    def sealed(self) -> bool:
        return bool(self.config.get("sealed"))

    def present(self) -> list[Message]:
        there = [
            one
            for one in self.log
            if one.sequence >= self._purged_below and one.sequence not in self._deleted and not self._expired(one)
        ]
        if self.config.get("max_msgs_per_subject") == 1:
            newest = {message.subject: message.sequence for message in there}
            there = [message for message in there if newest[message.subject] == message.sequence]
        return there

    def _expired(self, message: Message) -> bool:
        ttl_s = _ttl_s(message.headers)
        return ttl_s is not None and unix_time_s(message.time) + ttl_s <= self._now_s()

    def view(self, lag: int) -> list[Message]:
        """The messages of a replica. If it lags, it lacks the newest messages and still has purged ones."""
        return self.log[: max(0, len(self.log) - lag)] if lag else self.present()

    def at(self, sequence: int) -> Message | None:
        return next((message for message in self.present() if message.sequence == sequence), None)

    def last_of(self, subject: str) -> Message | None:
        return next((message for message in reversed(self.present()) if collide(subject, message.subject)), None)

    def store(self, batch: Sequence[Outgoing]) -> int:
        """Store all messages or none. Their expectations are checked against the stream before the batch."""
        if self.sealed:
            raise ApiError(js.SEALED, 400, "invalid operation on sealed stream")
        if len(batch) > 1 and not self.config.get("allow_atomic"):
            raise ApiError(BATCH_DISABLED, 400, "atomic publish is disabled")
        if len(batch) > BATCH_MESSAGES_MAX:
            raise ApiError(BATCH_TOO_LARGE, 400, f"atomic publish batch is too large: {BATCH_MESSAGES_MAX}")
        for number, message in enumerate(batch):
            self._check(message, batch[:number])
        stored_bytes = sum(map(_stored_bytes, self.present())) + sum(map(_stored_bytes, batch))
        if stored_bytes > self.config.get("max_bytes", stored_bytes):
            raise ApiError(js.STREAM_FULL, 503, "maximum bytes exceeded")
        for message in batch:
            self.last += 1
            self.log.append(Message(self.last, message.subject, self._time(), dict(message.headers), message.payload))
        self.commits.append(self.log[-1].time)
        return self.last

    def _check(self, message: Outgoing, before: Sequence[Outgoing]) -> None:
        if js.TTL in message.headers:
            if not self.config.get("allow_msg_ttl"):
                raise ApiError(TTL_DISABLED, 400, "per-message TTL is disabled")
            _ttl_s(message.headers)
        if message.headers.get(js.EXPECTED_STREAM, self.name) != self.name:
            raise ApiError(js.WRONG_STREAM, 400, "expected stream does not match")
        expected = message.headers.get(js.EXPECTED_LAST_SUBJECT_SEQUENCE)
        if expected is None:
            return
        if any(one.subject == message.subject for one in before):
            raise ApiError(js.SUBJECT_WRITE_IN_FLIGHT, 400, "wrong last sequence")
        there = self.last_of(message.subject)
        if int(expected) != (there.sequence if there else 0):
            raise ApiError(js.WRONG_LAST_SEQUENCE, 400, "wrong last sequence")

    def purge_below(self, sequence: int) -> None:
        """Remove the messages below a sequence, which is at most that of the next message."""
        if self.sealed:
            raise Unavailable(Outage.QUEUE_AWAY, "the queue refuses to purge: invalid operation on sealed stream")
        self._purged_below = max(self._purged_below, sequence)
        self.last = max(self.last, sequence - 1)

    def delete(self, sequence: int) -> None:
        """Remove one message, if it exists."""
        self._deleted.add(sequence)

    def update(self, changes: Mapping[str, object]) -> bool:
        if self.sealed and changes.get("sealed") is False:
            raise Unavailable(Outage.QUEUE_AWAY, "the queue refuses to unseal a sealed stream")
        changed = not self.config.items() >= changes.items()
        self.config |= changes
        return changed

    def roll_back(self, time: str) -> list[Message]:
        """Reset the stream to an earlier time, without purges; returns the lost messages."""
        self.commits = [commit for commit in self.commits if commit <= time]
        kept = [message for message in self.log if message.time <= time]
        lost = self.log[len(kept) :]
        self.log, self._purged_below = kept, 0
        self.last = kept[-1].sequence if kept else 0
        return lost


def _stored_bytes(message: Message | Outgoing) -> int:
    headers = sum(len(f"{name}: {value}\r\n".encode()) for name, value in message.headers.items())
    return RECORD_BYTES + len(message.subject) + headers + len(message.payload)


def _ttl_s(headers: Mapping[str, str]) -> int | None:
    """How long a message with these headers is kept; None if there is no limit."""
    text = headers.get(js.TTL, "never")
    if text == "never":
        return None
    parsed = _TTL.fullmatch(text)
    if parsed is None or int(parsed[1]) < 1:
        raise ApiError(TTL_INVALID, 400, "invalid per-message TTL")
    return int(parsed[1]) * _TTL_UNIT_S[parsed[2]]


class QueueServer:
    """A nats-server. `now_s` is its clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.streams: dict[str, Stream] = {}
        self._now_s = now_s
        self._time_ns = 0

    def time(self) -> str:
        """The current time in the server's format; no two times are equal."""
        self._time_ns = max(self._time_ns + 1, int(self._now_s() * 1e9))
        whole_s, ns = divmod(self._time_ns, 10**9)
        return f"{dt.datetime.fromtimestamp(whole_s, dt.UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"

    def stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise js.Missing(name)
        return self.streams[name]

    def names(self, subject: str) -> list[str]:
        """The streams with a subject, which may have wildcards."""
        return sorted(
            name for name, one in self.streams.items() if any(collide(subject, of) for of in one.config["subjects"])
        )

    def create(self, config: Mapping[str, Any]) -> None:
        there = self.streams.get(config["name"])
        if there is not None:
            if there.config != dict(config):
                raise ApiError(js.STREAM_NAME_IN_USE, 400, "stream name already in use with a different configuration")
            return
        if any(self.names(subject) for subject in config["subjects"]):
            raise ApiError(js.SUBJECTS_OVERLAP, 400, "subjects overlap with an existing stream")
        self.streams[config["name"]] = Stream(config, self.time, self._now_s)

    def store(self, batch: Sequence[Outgoing]) -> int:
        streams = [next(iter(self.names(message.subject)), None) for message in batch]
        if streams[-1] is None:
            raise js.Missing(batch[-1].subject)
        if len(set(streams)) > 1:
            raise ApiError(BATCH_INCOMPLETE, 400, "atomic publish batch is incomplete")
        return self.streams[streams[-1]].store(batch)


class ModelJetStream(JetStream):
    """A connection to a modelled queue. Requests for a stream's state are answered at once."""

    def __init__(self, server: QueueServer, ask: Ask = at_once) -> None:
        self._server = server
        self._ask_server = ask

    @property
    def connected(self) -> bool:
        return True

    async def close(self) -> None:
        pass

    async def stream_names(self, subject: str) -> list[str]:
        return self._server.names(subject)

    async def state(self, stream: str) -> StreamState:
        of = self._server.stream(stream)
        return StreamState(
            name=stream,
            subjects=of.config["subjects"],
            metadata=of.config.get("metadata", {}),
            sealed=of.sealed,
            first=of.first,
            last=of.last,
            messages=len(of.present()),
            bytes=sum(len(one.payload) for one in of.present()),
            deleted=of.last - of.first + 1 - len(of.present()) if of.present() else 0,
            now=self._server.time(),
        )

    async def subjects(self, stream: str, subject: str) -> list[str]:
        return sorted({one.subject for one in self._server.stream(stream).present() if collide(subject, one.subject)})

    async def create_stream(self, config: Mapping[str, Any]) -> None:
        await self._ask_server("make", lambda _: self._server.create(config), writes=True)

    async def update_stream(self, stream: str, **changes: object) -> bool:
        return await self._ask_server("update", lambda _: self._server.stream(stream).update(changes), writes=True)

    async def delete_stream(self, stream: str) -> None:
        await self._ask_server("remove", lambda _: self._server.streams.pop(stream, None), writes=True)

    async def purge_below(self, stream: str, sequence: int) -> None:
        self._server.stream(stream).purge_below(sequence)

    async def delete_message(self, stream: str, sequence: int) -> None:
        await self._ask_server("fold", lambda _: self._server.stream(stream).delete(sequence), writes=True)

    async def publish(self, message: Outgoing) -> int:
        return await self.publish_batch([message], 1)

    async def publish_batch(
        self,
        messages: Iterable[Outgoing],
        count: int,
        *,
        in_time: Callable[[], bool] = lambda: True,
        commit_timeout_s: float = js.COMMIT_TIMEOUT_S,
    ) -> int:
        batch = list(messages)
        assert len(batch) == count
        if not in_time():
            raise Unavailable(Outage.QUEUE_AWAY, "the time for the batch ran out")
        kind = batch[-1].subject.partition(".")[0]
        return await self._ask_server(f"store {kind}", lambda _: self._server.store(batch), writes=True)

    async def get(self, stream: str, sequence: int) -> Message | None:
        return await self._ask_server("get", lambda _: self._server.stream(stream).at(sequence))

    async def get_last(self, stream: str, subject: str) -> Message | None:
        return await self._ask_server("get last", lambda _: self._server.stream(stream).last_of(subject))

    async def has(self, stream: str, sequence: int) -> bool:
        return self._server.stream(stream).last >= sequence and bool(self._server.stream(stream).present())

    async def read(self, stream: str, first: int, *, messages_max: int, bytes_max: int) -> list[Message]:
        return (await self.read_subject(stream, ">", first, messages_max=messages_max, bytes_max=bytes_max))[0]

    async def read_headers(self, stream: str, first: int, *, messages_max: int) -> list[Header]:
        messages = await self.read(stream, first, messages_max=messages_max, bytes_max=2**40)
        return [Header(message.sequence, message.headers) for message in messages]

    async def read_subject(
        self, stream: str, subject: str, begin: int | str, *, messages_max: int, bytes_max: int
    ) -> tuple[list[Message], int]:
        def read(lag: int) -> tuple[list[Message], int]:
            there = [
                message
                for message in self._server.stream(stream).view(lag)
                if (message.time >= begin if isinstance(begin, str) else message.sequence >= begin)
                and collide(subject, message.subject)
            ]
            taken = size = 0
            while taken < min(len(there), messages_max) and size < bytes_max:
                size += _stored_bytes(there[taken]) - RECORD_BYTES
                taken += 1
            return there[:taken], len(there) - taken

        return await self._ask_server("read", read)

    async def last_messages(self, stream: str, subjects: Sequence[str]) -> list[Message]:
        def last(lag: int) -> list[Message]:
            newest = {message.subject: message for message in self._server.stream(stream).view(lag)}
            found = [one for one in newest.values() if any(collide(subject, one.subject) for subject in subjects)]
            return sorted(found, key=lambda message: message.sequence)

        return await self._ask_server("identities", last)


# --- the bucket


@dataclass(frozen=True)
class Object:
    """An object in the bucket."""

    body: bytes
    metadata: Mapping[str, str]


class ModelBucket:
    """A connection to a modelled bucket, which is a mapping by key. Reads of an object are answered at once."""

    name = "bronze"

    def __init__(self, objects: dict[str, Object], ask: Ask = at_once) -> None:
        self._objects = objects
        self._ask = ask

    def put(self, key: str, new: Object) -> bool:
        created = key not in self._objects
        self._objects.setdefault(key, new)
        return created

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        new = Object(body, {**metadata, "sha256": hashlib.sha256(body).hexdigest()})
        return await self._ask("put", lambda _: self.put(key, new), writes=True)

    async def delete(self, key: str) -> None:
        await self._ask("delete", lambda _: self._objects.pop(key, None), writes=True)

    async def replace(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str, etag: str) -> bool:
        new = Object(body, {**metadata, "sha256": hashlib.sha256(body).hexdigest()})

        def put(_: int) -> bool:
            if key not in self._objects or self._objects[key].metadata["sha256"] != etag:
                return False
            self._objects[key] = new
            return True

        return await self._ask("put", put, writes=True)

    async def old_versions(self, key: str) -> Sequence[str]:
        return []

    async def delete_version(self, key: str, version: str) -> None: ...

    async def head(self, key: str) -> Head | None:
        def head(_: int) -> Head | None:
            there = self._objects.get(key)
            return None if there is None else Head(len(there.body), there.metadata, there.metadata.get("sha256", ""))

        return await self._ask("head", head)

    async def read(self, key: str, start: int, end: int) -> bytes:
        if key not in self._objects:
            raise NoSuchKey(key)
        return self._objects[key].body[start:end]

    async def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]:
        async for key, _ in self.sizes(prefix, start_after):
            yield key

    async def sizes(self, prefix: str, start_after: str = "") -> AsyncIterator[tuple[str, int]]:
        listed = await self._ask("list", lambda _: sorted((key, len(one.body)) for key, one in self._objects.items()))
        for key, size in listed:
            if key.startswith(prefix) and key > start_after:
                yield key, size

    async def check(self) -> None: ...
