"""One lane's consumer: its messages become objects, by the chain protocol (`docs/delivery.md`).

A lane's loop reads as the data's way: read what follows the chain, cut, ask for the identities, encode, create the
object, append to the catalog. A crash may cut it short at any line; whoever goes on begins at the catalog's last entry.
"""

import asyncio
import datetime as dt
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from bronze.consumer.tasks import cancel, run_unless_stopped, wait_unless_stopped
from bronze.consumer.upload_telemetry import UploadTelemetry
from bronze.errors import BronzeError, DeadLetter, Fault, Gone, Halted, Outage, Unavailable
from bronze.objects import encoder
from bronze.objects.encoder import Encoded
from bronze.objects.footer import CONTENT_TYPE, user_metadata
from bronze.objects.reader import read_contents
from bronze.protocol import quarantine
from bronze.protocol.chain import Gap, Position, Tail, check_covered, reconcile, rolled_back
from bronze.protocol.documents import Contents, QuarantinedMessage
from bronze.protocol.keys import first_of_key, hour_prefix, object_key
from bronze.protocol.lane import Lane
from bronze.protocol.limits import Limits, due, full, next_cut, readable_prefix
from bronze.protocol.message import FORMAT, Message, MessageKind, unix_time_s
from bronze.protocol.quarantine import QuarantineMetadata
from bronze.records.sources import Source
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog, Overtaken
from bronze.servers.lane_lock import Lock, LockLost
from bronze.servers.queue import Queue
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Stage, Step, attribute, error_type, spans

log = logging.getLogger(__name__)

POLL_S = 0.1
MAINTENANCE_S = 1.0
BACK_OFF_S_MIN = 0.1
BACK_OFF_S_MAX = 5.0
#: How long a lane whose next message only a newer consumer knows is left alone.
NEWER_FORMAT_WAIT_S = 30.0


class NewerFormat(BronzeError):
    """The lane's next message is of a format, or of a version of the source, that this consumer does not know."""


class LaneWriter:
    """One lane's consumer."""

    def __init__(
        self,
        lane: Lane,
        source: Source,
        queue: Queue,
        bucket: Bucket,
        catalog: Catalog,
        lock: Lock,
        telemetry: Telemetry,
        *,
        prefix: str,
        limits: Limits,
        purge_grace_s: float,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._lane = lane
        self._source = source
        self._queue = queue
        self._bucket = bucket
        self._catalog = catalog
        self._lock = lock
        self._telemetry = telemetry
        self._prefix = prefix
        self._limits = limits
        self._purge_grace_s = purge_grace_s
        self._now_s = now_s
        self._read_ns = 0
        self._verified_s = 0.0

    # --- for as long as the role runs

    async def run(self, stop: asyncio.Event) -> None:
        """Write objects until stopped or halted; what passes is waited out. Raises `Gone`."""
        wait_s = BACK_OFF_S_MIN
        while not stop.is_set():
            try:
                await self._write_with_lock(stop)
                wait_s = BACK_OFF_S_MIN
            except (Overtaken, LockLost) as error:
                log.info("lane %s: %s", self._lane.stream, type(error).__name__)
                wait_s = BACK_OFF_S_MIN
            except Gone:
                raise
            except Halted as error:
                log.critical("lane %s stopped: %s", self._lane.stream, error)
                return
            except NewerFormat as error:
                log.error("lane %s is left to a newer consumer: %s", self._lane.stream, error)
                wait_s = NEWER_FORMAT_WAIT_S
            except Unavailable as error:
                log.warning("lane %s waits %.1f s: %s", self._lane.stream, wait_s, error)
            except Exception:
                log.exception("lane %s: not foreseen", self._lane.stream)
            await wait_unless_stopped(stop, wait_s)
            wait_s = min(wait_s * 2, BACK_OFF_S_MAX)

    async def _write_with_lock(self, stop: asyncio.Event) -> None:
        """Write while the lock is ours."""
        with self._step(Step.LOCK):
            await run_unless_stopped(stop, self._lock.acquire())
        if stop.is_set():
            return
        keep = asyncio.create_task(self._lock.keep_alive())
        write = asyncio.create_task(self._write(stop))
        try:
            await asyncio.wait({keep, write}, return_when=asyncio.FIRST_COMPLETED)
            (write if write.done() else keep).result()
        finally:
            await cancel(keep, write)
            if keep.cancelled():
                with suppress(Unavailable, LockLost):
                    await self._lock.release()

    async def _write(self, stop: asyncio.Event) -> None:
        with self._step(Step.POSITION):
            position, _ = await self._catalog.position(self._lane)
            await self._check_keys(position)
        pending: list[Message] = []
        while not stop.is_set():
            with self._step(Step.READ):
                pending += await self._read(position, pending)
                ready = readable_prefix(pending, self._source.version)
                if pending and not ready:
                    raise NewerFormat(
                        f"message {pending[0].sequence} is of a newer format than {FORMAT}, or of a newer version of "
                        f"{self._source.name} than {self._source.version}"
                    )
            if not due(ready, self._now_s(), self._limits):
                await wait_unless_stopped(stop, POLL_S)
                continue
            limits = self._lock.attempt.bound(ready[0].sequence, self._limits)
            position = await self._store(position, next_cut(ready, limits), pending)
            pending = [message for message in pending if message.sequence > position.last]

    # --- rule 3: read what follows the chain

    async def _check_keys(self, position: Position) -> None:
        """An object at or past the position whose message is missing or of another hour: the queue was rolled back."""
        entry = position.entry
        begin = f"{entry.file_path.rpartition('/')[0]}/" if entry else self._folder(self._lane.since)
        async for key in self._bucket.keys(f"{self._prefix}/source={self._lane.source}/", begin):
            first = first_of_key(self._lane, key)
            if first is None or first <= position.last:
                continue
            message = await self._queue.get(self._lane, first)
            if message is None or not key.startswith(self._folder(message.time)):
                raise rolled_back(first, f"is not the one that {key} begins with")

    def _folder(self, time: str) -> str:
        return hour_prefix(self._prefix, self._lane.source, time)

    async def _read(self, position: Position, pending: Sequence[Message]) -> list[Message]:
        """What follows, without a gap; the message before it is read again and has to be the same."""
        if full(pending, self._limits):
            return []
        tail = Tail.of(position, pending)
        after = tail.sequence if tail else 0
        if not await self._queue.has_after(self._lane, after) and time.monotonic() - self._verified_s < MAINTENANCE_S:
            return []
        try:
            read = await self._queue.read(self._lane, tail)
        except Gap as gap:
            await self._raise_for_gap(position, gap)
        self._verified_s = time.monotonic()
        if read and not pending:
            self._read_ns = time.time_ns()
        return read

    async def _raise_for_gap(self, position: Position, gap: Gap) -> NoReturn:
        """Why a message is missing: stored and purged by another writer, not there yet, or lost by the queue."""
        now, _ = await self._catalog.position(self._lane)
        if now.entry_sequence != position.entry_sequence:
            raise Overtaken from gap
        await self._queue.halt_if_lost(self._lane, gap)
        raise Unavailable(Outage.TIMEOUT, f"a replica of the queue is late: {gap}") from gap

    # --- rules 3 to 5: cut, encode, create, append

    async def _store(self, position: Position, cut: Sequence[Message], read: Sequence[Message]) -> Position:
        lane = self._lane
        with self._step(Step.IDENTITIES):
            ids = list(dict.fromkeys(message.submission_id for message in cut))
            identities = await self._catalog.identities(lane, position, ids)
        attempt = self._lock.attempt
        parts = reconcile(lane, cut, identities, undecoded=attempt.hopeless(cut))
        trail = UploadTelemetry(self._telemetry, lane, parts, self._read_ns)
        try:
            with self._step(Step.ENCODE):
                await self._lock.begin_decoding(attempt.begin(cut))
                with trail.stage(Stage.ENCODE, spans.encode):
                    key = object_key(self._prefix, lane, cut[0])
                    encoded = await asyncio.to_thread(
                        encoder.encode_object, self._source, lane, key, parts, trail.traceparent, self._now()
                    )
                await self._lock.end_decoding()
            contents = await self._create(encoded, trail, read)
            with self._step(Step.QUARANTINE):
                for aside in contents.quarantined:
                    await self._set_aside(aside, contents.file_path, position, read)
            with self._step(Step.CATALOG), trail.stage(Stage.CATALOG):
                position = await self._catalog.append(lane, position, contents)
            trail.stored(contents)
        except BaseException as error:
            trail.close(error)
            raise
        trail.close()
        return position

    async def _create(self, encoded: Encoded, trail: UploadTelemetry, read: Sequence[Message]) -> Contents:
        """Put the object under its key. From then on what is in the bucket decides, whoever wrote it."""
        key = encoded.contents.file_path
        wait_s = BACK_OFF_S_MIN
        while True:
            began_s = time.perf_counter()
            try:
                with self._step(Step.PUT), trail.stage(Stage.PUT, spans.put, self._put_attributes(encoded)):
                    created = await self._bucket.create(
                        key, encoded.body, user_metadata(encoded.contents), CONTENT_TYPE
                    )
                    contents = encoded.contents if created else await self._contents(key)
                break
            except Unavailable as error:
                trail.put_failed(error, began_s)
                log.warning("%s: not written, next try in %.1f s: %s", key, wait_s, error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, BACK_OFF_S_MAX)
        with self._step(Step.PUT):
            check_covered(contents, read)
        if contents.traceparent == trail.traceparent:
            trail.put_done(contents, len(encoded.body))
        return contents

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self._now_s(), dt.UTC).isoformat(timespec="microseconds")

    def _put_attributes(self, encoded: Encoded) -> dict[str, str | int]:
        return {
            attribute.rpc_system_name: "aws-api",
            attribute.rpc_method: "S3/PutObject",
            attribute.aws_s3_bucket: self._bucket.name,
            attribute.aws_s3_key: encoded.contents.file_path,
            attribute.bronze_file_path: encoded.contents.file_path,
            attribute.bronze_bytes: len(encoded.body),
        }

    async def _contents(self, key: str) -> Contents:
        """What the object under a key holds, as its own footer says."""
        contents = await read_contents(self._bucket, key)
        if contents is None:
            raise Unavailable(Outage.CONFLICT, f"{key} was there and is gone")
        return contents

    async def _set_aside(
        self, aside: QuarantinedMessage, file_path: str, position: Position, read: Sequence[Message]
    ) -> None:
        """Keep a message's content byte for byte. Its headers stand in the footer of the object that lists it."""
        message = next((one for one in read if one.sequence == aside.sequence), None)
        message = message or await self._queue.get(self._lane, aside.sequence)
        if message is None:
            await self._raise_for_gap(position, Gap(aside.sequence))
        metadata = QuarantineMetadata(aside.reason, message.subject, str(message.sequence), message.time, file_path)
        try:
            kept = message.content()
        except DeadLetter:
            kept = message.payload
        created = await self._bucket.create(aside.key, kept, metadata.encode(), quarantine.CONTENT_TYPE)
        if created and aside.kind is MessageKind.REJECTED:
            log.info("%d rejected records of %s are kept as %s", aside.records, message.submission_id, aside.key)
        elif created:
            self._count(Step.ENCODE, Fault.POISON)
            log.error(
                "message %d of %s is set aside as %s: %s",
                message.sequence,
                self._lane.stream,
                aside.key,
                aside.reason,
            )

    # --- rule 6, and what is seen of the lane: owner or not

    async def maintain(self) -> None:
        """Purge what is stored and old enough, and report where the lane stands, for as long as the role runs.

        Raises `Gone`: who waits for the lock has no other way to see it.
        """
        purgeable: deque[tuple[float, Tail]] = deque()
        while True:
            try:
                with self._step(Step.PURGE):
                    await self._purge_and_report(purgeable)
            except Gone:
                raise
            except BronzeError as error:
                log.info("lane %s: not looked after: %s", self._lane.stream, error)
            except Exception:
                log.exception("lane %s: not foreseen", self._lane.stream)
            await asyncio.sleep(MAINTENANCE_S)

    async def _purge_and_report(self, purgeable: deque[tuple[float, Tail]]) -> None:
        """One look; `purgeable` are the anchors that were seen, with when their entries were stored."""
        position, stored_at = await self._catalog.position(self._lane)
        anchor = Tail.of(position, [])
        if anchor and (not purgeable or purgeable[-1][1].sequence < anchor.sequence):
            purgeable.append((unix_time_s(stored_at), anchor))
        backlog = await self._queue.state(self._lane)
        now_s = unix_time_s(backlog.now)
        old: Tail | None = None  # what a sealed queue holds goes with it
        while purgeable and now_s - purgeable[0][0] >= self._purge_grace_s:
            old = purgeable.popleft()[1]
        if old and backlog.first < old.sequence and not backlog.sealed:
            there = await self._queue.get(self._lane, old.sequence)
            if there and there.time == old.time:  # else the queue was rolled back: what it has is not stored
                await self._queue.purge_below(self._lane, old.sequence)
        oldest = await self._queue.get(self._lane, position.last + 1) if backlog.last > position.last else None
        of_lane = {attribute.bronze_source: self._lane.source, attribute.bronze_lane: str(self._lane.number)}
        instruments = self._telemetry.instruments
        if position.entry:
            instruments.upload_last_success_time.set(unix_time_s(stored_at), of_lane)
        instruments.lane_position.set(position.last, of_lane)
        instruments.queue_depth.set(max(0, backlog.last - position.last), of_lane)
        instruments.queue_oldest_age.set(max(0.0, now_s - unix_time_s(oldest.time)) if oldest else 0.0, of_lane)

    # --- errors, counted by step

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        try:
            yield
        except NewerFormat:
            self._count(step, Fault.UNKNOWN_FORMAT)
            raise
        except (Overtaken, LockLost):
            raise  # another writer's doing, and no error
        except Exception as error:
            self._count(step, error_type(error))
            raise

    def _count(self, step: Step, kind: str) -> None:
        self._telemetry.instruments.consumer_errors.add(
            1,
            {
                attribute.bronze_source: self._lane.source,
                attribute.bronze_step: step,
                attribute.error_type: kind,
            },
        )
