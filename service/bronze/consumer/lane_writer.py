"""The consumer of one lane: it turns messages into objects, by the chain protocol (`docs/delivery.md`).

Its loop follows the path of the data: read the messages after the chain, cut, read the identities, encode, create the
object, append to the catalog. It may crash at any line; the next consumer starts at the last entry of the catalog.
"""

import asyncio
import datetime as dt
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NoReturn

from aiorwlock import RWLock

from bronze import process
from bronze.consumer.monitors import Monitors
from bronze.consumer.tasks import cancel, run_unless_stopped, wait_unless_stopped
from bronze.consumer.upload_telemetry import UploadTelemetry
from bronze.errors import BronzeError, DeadLetter, Fault, Gone, Halted, Outage, Unavailable
from bronze.objects import encoder
from bronze.objects.encoder import Encoded
from bronze.objects.footer import CONTENT_TYPE, user_metadata
from bronze.objects.ledger import count_totals
from bronze.objects.reader import read_object
from bronze.protocol import quarantine
from bronze.protocol.attempts import Attempt
from bronze.protocol.chain import Gap, Position, ReconciledCut, Tail, check_covered, reconcile, rolled_back
from bronze.protocol.documents import QuarantinedMessage, StoredObject
from bronze.protocol.keys import first_of_key, hour_prefix, object_key
from bronze.protocol.lane import Lane
from bronze.protocol.limits import Limits, due, full, next_cut, readable_prefix
from bronze.protocol.message import FORMAT, Message, MessageKind, unix_time_s
from bronze.protocol.quarantine import QuarantineMetadata
from bronze.records.sources import Source
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog, Overtaken
from bronze.servers.lane_lock import Lock, LockLost
from bronze.servers.queue import Queue, boot_time_s
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Stage, Step, attribute, error_type, spans

log = logging.getLogger(__name__)

POLL_S = 0.1
#: The longest wait of an idle lane before it looks for messages again: in seconds, and as a share of the age at which
#: they are due, so that it is early enough for each.
IDLE_POLL_S_MAX = 1.0
IDLE_POLL_SHARE = 0.5
#: How often a lane without new messages reads its last one again, to notice that the queue was rolled back.
VERIFY_S = 5.0
#: How often a lane is maintained, and if nothing waits in it, neither to be stored nor to be purged.
MAINTENANCE_S = 1.0
IDLE_MAINTENANCE_S = 2.5
BACK_OFF_S_MIN = 0.1
BACK_OFF_S_MAX = 5.0
#: A consumer creates an object at most so long after it read the position: less than the shortest time for which an
#: identity is kept, during which no object is deleted (rule 12).
WRITE_S_MAX = 3600.0
#: How long a lane waits if its next message needs a newer consumer.
NEWER_FORMAT_WAIT_S = 30.0
#: After a cut with so many bytes of records, freed memory goes back to the system: that takes 3 to 8 ms.
LARGE_CUT_BYTES = 8 * 2**20


class NewerFormat(BronzeError):
    """The lane's next message has a format, or a version of the source, that this consumer does not know."""


class LaneWriter:
    """The consumer of one lane.

    `decoding` is one for all lanes of a process: they share it, and a suspect cut is decoded while no other is.
    """

    def __init__(
        self,
        lane: Lane,
        source: Source,
        queue: Queue,
        bucket: Bucket,
        catalog: Catalog,
        lock: Lock,
        telemetry: Telemetry,
        decoding: RWLock,
        *,
        prefix: str,
        limits: Limits,
        purge_grace_s: float,
        monitors: Monitors | None = None,
        now_s: Callable[[], float] = time.time,
        clock_s: Callable[[], float] = boot_time_s,
    ) -> None:
        """`clock_s` also runs while the process is suspended."""
        self._lane = lane
        self._source = source
        self._queue = queue
        self._bucket = bucket
        self._catalog = catalog
        self._lock = lock
        self._telemetry = telemetry
        self._decoding = decoding
        self._prefix = prefix
        self._limits = limits
        self._purge_grace_s = purge_grace_s
        self._monitors = monitors
        self._now_s = now_s
        # malloc keeps memory per thread: in the threads of asyncio's executor by turns, 270 MB more at the peak
        self._encoder = ThreadPoolExecutor(1, f"encode-{lane.stream}")
        self._clock_s = clock_s
        #: when the position was last known to be that of the lane
        self._position_s = -math.inf
        self._read_ns = 0
        self._verified_s = -math.inf

    # --- while the role runs

    async def run(self, stop: asyncio.Event) -> None:
        """Write objects until stopped or halted; other errors are retried. Raises `Gone`."""
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
                log.critical("lane %s halted: %s", self._lane.stream, error)
                return
            except NewerFormat as error:
                log.error("lane %s needs a newer consumer, and this one waits: %s", self._lane.stream, error)
                wait_s = NEWER_FORMAT_WAIT_S
            except Unavailable as error:
                log.warning("lane %s: retry in %.1f s: %s", self._lane.stream, wait_s, error)
            except Exception:
                log.exception("lane %s: unexpected error", self._lane.stream)
            await wait_unless_stopped(stop, wait_s)
            wait_s = min(wait_s * 2, BACK_OFF_S_MAX)

    async def _write_with_lock(self, stop: asyncio.Event) -> None:
        """Wait for the lock, and write objects until another consumer has it."""
        with self._step(Step.LOCK):
            await run_unless_stopped(stop, self._lock.acquire())
        if stop.is_set():
            return
        heartbeat = asyncio.create_task(self._lock.keep_alive())
        write = asyncio.create_task(self._write(stop))
        try:
            await asyncio.wait({heartbeat, write}, return_when=asyncio.FIRST_COMPLETED)
            (write if write.done() else heartbeat).result()
        finally:
            await cancel(heartbeat, write)
            if heartbeat.cancelled():
                with suppress(Unavailable, LockLost):
                    await self._lock.release()

    async def _write(self, stop: asyncio.Event) -> None:
        with self._step(Step.POSITION):
            self._position_s = self._clock_s()
            position, _ = await self._catalog.position(self._lane)
            position = await count_totals(self._catalog, self._bucket, self._lane, position)
            await self._check_keys(position)
        pending: list[Message] = []
        wait_s = POLL_S
        wait_s_max = max(POLL_S, min(IDLE_POLL_S_MAX, self._limits.age_s_max * IDLE_POLL_SHARE))
        while not stop.is_set():
            with self._step(Step.READ):
                pending += await self._read(position, pending)
                ready = readable_prefix(pending, self._source.version)
                if pending and not ready:
                    raise NewerFormat(
                        f"message {pending[0].sequence} has a newer format than this consumer knows ({FORMAT}), or a "
                        f"newer version of {self._source.name} than it knows ({self._source.version})"
                    )
            if not due(ready, self._now_s(), self._limits):
                wait_s = POLL_S if pending else min(wait_s * 2, wait_s_max)
                await wait_unless_stopped(stop, wait_s)
                continue
            wait_s = POLL_S
            limits = self._lock.attempt.cut_limits(ready[0].sequence, self._limits)
            position = await self._store(position, next_cut(ready, limits), pending)
            pending = [message for message in pending if message.sequence > position.last]

    # --- rule 3: read the messages after the chain

    async def _check_keys(self, position: Position) -> None:
        """Raises `Halted` if the first message of an object past the position is missing, or is from another hour.

        Then the queue was rolled back.
        """
        entry = position.entry
        begin = f"{entry.file_path.rpartition('/')[0]}/" if entry else self._folder(self._lane.since)
        async for key in self._bucket.keys(f"{self._prefix}/source={self._lane.source}/", begin):
            first = first_of_key(self._lane, key)
            if first is None or first <= position.last:
                continue
            message = await self._queue.get(self._lane, first)
            if message is None or not key.startswith(self._folder(message.time)):
                raise rolled_back(first, f"is not the first message of {key}")

    def _folder(self, time: str) -> str:
        return hour_prefix(self._prefix, self._lane.source, time)

    async def _read(self, position: Position, pending: Sequence[Message]) -> list[Message]:
        """The next messages, without a gap; the message before them is read again and has to be the same."""
        if full(pending, self._limits):
            return []
        tail = Tail.of(position, pending)
        after = tail.sequence if tail else 0
        loop = asyncio.get_running_loop()
        verified = loop.time() - self._verified_s < VERIFY_S
        if verified and not await self._queue.has_after(self._lane, after):
            return []
        try:
            messages = await self._queue.read(self._lane, tail)
        except Gap as gap:
            await self._raise_for_gap(position, gap)
        self._verified_s = loop.time()
        if messages and not pending:
            self._read_ns = time.time_ns()
        return messages

    async def _raise_for_gap(self, position: Position, gap: Gap) -> NoReturn:
        """Raises the error for a missing message: purged by another writer, not in the replica yet, or lost."""
        current, _ = await self._catalog.position(self._lane)
        if current.entry_sequence != position.entry_sequence:
            raise Overtaken from gap
        await self._queue.halt_if_lost(self._lane, gap)
        raise Unavailable(Outage.TIMEOUT, f"a replica of the queue is not up to date: {gap}") from gap

    # --- rules 3 to 5: cut, encode, create, append

    async def _store(self, position: Position, cut: Sequence[Message], read: Sequence[Message]) -> Position:
        lane = self._lane
        await self._confirm(position)
        with self._step(Step.IDENTITIES):
            ids = list(dict.fromkeys(message.submission_id for message in cut))
            identities = await self._catalog.identities(lane, position, ids)
        reconciled = reconcile(lane, cut, identities, skip_decoding=self._lock.attempt.exhausted(cut))
        attempt = self._lock.attempt.begin(cut)
        upload = UploadTelemetry(self._telemetry, lane, reconciled, self._read_ns)
        try:
            # A death counts for every lane that is decoding: a suspect is alone, so that no other lane is blamed again.
            async with self._decoding.writer if attempt.suspect else self._decoding.reader:
                with self._step(Step.ENCODE):
                    encoded = await self._encode(attempt, reconciled, upload, position)
            stored = await self._create(encoded, upload, read)
            contents = stored.contents
            with self._step(Step.QUARANTINE):
                for quarantined in contents.quarantined:
                    await self._quarantine(quarantined, contents.file_path, position, read)
            appended_s = self._clock_s()
            with self._step(Step.CATALOG), upload.stage(Stage.CATALOG):
                position = await self._catalog.append(lane, position, stored)
            self._position_s = appended_s
            upload.stored(stored)
            # if another consumer wrote the object, of other messages, what was measured here is not of it
            if self._monitors and contents.digest == encoded.contents.digest:
                self._monitors.add(encoded)
        except BaseException as error:
            upload.close(error)
            raise
        upload.close()
        return position

    async def _confirm(self, position: Position) -> None:
        """Read the position again if it was read long ago, as in an idle lane. Raises `Overtaken` if it has moved."""
        asked_s = self._clock_s()
        if asked_s - self._position_s < WRITE_S_MAX / 2:
            return
        with self._step(Step.POSITION):
            current, _ = await self._catalog.position(self._lane)
        if current.entry_sequence != position.entry_sequence:
            raise Overtaken
        self._position_s = asked_s

    async def _encode(
        self, attempt: Attempt, cut: ReconciledCut, upload: UploadTelemetry, position: Position
    ) -> Encoded:
        await self._lock.begin_decoding(attempt)
        with upload.stage(Stage.ENCODE, spans.encode):
            key = object_key(self._prefix, self._lane, cut.messages[0])
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._encoder,
                encoder.encode_object,
                self._source,
                self._lane,
                key,
                cut,
                upload.traceparent,
                self._now(),
                position.totals,
            )
        await self._lock.end_decoding()
        if sum(message.size for message in cut.messages) >= LARGE_CUT_BYTES:
            await asyncio.to_thread(process.return_freed_memory)
        return encoded

    async def _create(self, encoded: Encoded, upload: UploadTelemetry, read: Sequence[Message]) -> StoredObject:
        """Create the object. Returns the object that is in the bucket, whichever consumer wrote it.

        Raises `Overtaken`.
        """
        key = encoded.contents.file_path
        wait_s = BACK_OFF_S_MIN
        while True:
            self._check_time()
            began_s = time.perf_counter()
            try:
                with self._step(Step.PUT), upload.stage(Stage.PUT, spans.put, self._put_attributes(encoded)):
                    created = await self._bucket.create(
                        key, encoded.body, user_metadata(encoded.contents), CONTENT_TYPE
                    )
                    stored = encoded.stored if created else await self._existing(key)
                break
            except Unavailable as error:
                upload.put_failed(error, began_s)
                log.warning("%s: could not be written, next attempt in %.1f s: %s", key, wait_s, error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, BACK_OFF_S_MAX)
        with self._step(Step.PUT):
            check_covered(stored.contents, read)
        if stored.contents.traceparent == upload.traceparent:
            upload.put_done(stored)
        return stored

    def _check_time(self) -> None:
        """Raises `Overtaken` if the position was read too long ago to create something: another consumer may have
        written the object since, and it may have expired (rule 12).
        """
        if self._clock_s() - self._position_s > WRITE_S_MAX:
            raise Overtaken

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

    async def _existing(self, key: str) -> StoredObject:
        stored = await read_object(self._bucket, key)
        if stored is None:
            raise Unavailable(Outage.CONFLICT, f"{key} existed a moment ago and is now missing")
        return stored

    async def _quarantine(
        self, quarantined: QuarantinedMessage, file_path: str, position: Position, read: Sequence[Message]
    ) -> None:
        """Store a message's content byte for byte. Its headers are in the footer of the object that lists it."""
        sequence, key = quarantined.sequence, quarantined.key
        message = next((message for message in read if message.sequence == sequence), None)
        message = message or await self._queue.get(self._lane, sequence)
        if message is None:
            await self._raise_for_gap(position, Gap(sequence))
        metadata = QuarantineMetadata(quarantined.reason, message.subject, str(sequence), message.time, file_path)
        try:
            content = message.content()
        except DeadLetter:
            content = message.payload
        self._check_time()
        created = await self._bucket.create(key, content, metadata.encode(), quarantine.CONTENT_TYPE)
        if not created and await self._bucket.head(key) is None:
            raise Unavailable(Outage.CONFLICT, f"{key} existed a moment ago and is now missing")
        if created and quarantined.kind is MessageKind.REJECTED:
            log.info(
                "%d rejected records of submission %s were quarantined as %s",
                quarantined.records,
                message.submission_id,
                key,
            )
        elif created:
            self._count(Step.ENCODE, Fault.POISON)
            log.error(
                "message %d of lane %s was quarantined as %s: %s",
                sequence,
                self._lane.stream,
                key,
                quarantined.reason,
            )

    # --- rule 6, and the lane's gauges, also without the lock

    async def maintain(self) -> None:
        """Purge stored messages that are old enough, and report the state of the lane, while the role runs.

        Raises `Gone`: a consumer that waits for the lock would not notice otherwise that the lane was replaced.
        """
        purgeable: deque[tuple[float, Tail]] = deque()
        while True:
            wait_s = MAINTENANCE_S
            try:
                with self._step(Step.PURGE):
                    if await self._purge_and_report(purgeable):
                        wait_s = IDLE_MAINTENANCE_S
            except Gone:
                raise
            except BronzeError as error:
                log.info("lane %s: purge and status report failed: %s", self._lane.stream, error)
            except Exception:
                log.exception("lane %s: unexpected error", self._lane.stream)
            await asyncio.sleep(wait_s)

    async def _purge_and_report(self, purgeable: deque[tuple[float, Tail]]) -> bool:
        """One pass of `maintain`; `purgeable` are the anchors so far, each with the time when its entry was stored.

        Returns whether nothing waits in the lane.
        """
        position, stored_at = await self._catalog.position(self._lane)
        anchor = Tail.of(position, [])
        if anchor and (not purgeable or purgeable[-1][1].sequence < anchor.sequence):
            purgeable.append((unix_time_s(stored_at), anchor))
        stream = await self._queue.state(self._lane)
        now_s = unix_time_s(stream.now)
        expired: Tail | None = None
        while purgeable and now_s - purgeable[0][0] >= self._purge_grace_s:
            expired = purgeable.popleft()[1]
        # a sealed stream cannot be purged; it is deleted as a whole
        if expired and stream.first < expired.sequence and not stream.sealed:
            message = await self._queue.get(self._lane, expired.sequence)
            if message and message.time == expired.time:  # else the queue was rolled back: its messages are not stored
                await self._queue.purge_below(self._lane, expired.sequence)
        oldest = await self._queue.get(self._lane, position.last + 1) if stream.last > position.last else None
        lane_attributes = {attribute.bronze_source: self._lane.source, attribute.bronze_lane: str(self._lane.number)}
        instruments = self._telemetry.instruments
        if position.entry:
            instruments.upload_last_success_time.set(unix_time_s(stored_at), lane_attributes)
        if position.entry and position.entry.records:
            instruments.data_staleness_last_update_timestamp.set(unix_time_s(position.entry.last_time), lane_attributes)
        instruments.lane_position.set(position.last, lane_attributes)
        instruments.missing_messages.set(stream.deleted, lane_attributes)
        instruments.queue_depth.set(max(0, stream.last - position.last), lane_attributes)
        oldest_age_s = max(0.0, now_s - unix_time_s(oldest.time)) if oldest else 0.0
        instruments.queue_oldest_age.set(oldest_age_s, lane_attributes)
        return not purgeable and stream.last <= position.last

    # --- errors, counted by step

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        try:
            yield
        except NewerFormat:
            self._count(step, Fault.UNKNOWN_FORMAT)
            raise
        except (Overtaken, LockLost, Gone):
            raise  # caused by another writer, or by a change of lanes, and no error
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
