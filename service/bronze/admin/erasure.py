"""Erasure: removes a person's records from all that Bronze keeps in the bucket (`docs/delivery.md`, rule 13).

Objects, messages in quarantine and removal records are rewritten in place, one after the other, each on the condition
that it is still the one that was read. Each then names the erasure: so a command that was killed at any point is
finished by the next one, and the proof is made from what the bucket has.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from bronze.errors import DeadLetter, Halted, Outage, Unavailable
from bronze.objects.erasing import Rewritten, cleared_message, erase_rows
from bronze.objects.footer import CONTENT_TYPE, NotABronzeObject, user_metadata
from bronze.objects.quarantine_erasing import ErasedContent, NotSearchable, erase_records
from bronze.objects.reader import read_in_thread, read_object
from bronze.objects.removals import read_removal, read_removals
from bronze.objects.selection import Chosen
from bronze.protocol.documents import CatalogEntry, Contents, ErasedRows, QuarantinedMessage, entry_of
from bronze.protocol.erasure import RewrittenMessage, RewrittenObject, Selection
from bronze.protocol.lane import Lane
from bronze.protocol.message import MessageKind, Part
from bronze.protocol.quarantine import CONTENT_TYPE as QUARANTINE_CONTENT_TYPE
from bronze.protocol.quarantine import QuarantineMetadata
from bronze.protocol.removal import CONTENT_TYPE as REMOVAL_CONTENT_TYPE
from bronze.protocol.removal import Removal
from bronze.servers.bucket import ErasableBucket, Head, NoSuchKey
from bronze.servers.catalog import NatsCatalog

#: Objects that are searched and rewritten concurrently; each is in memory as a whole.
AT_ONCE = 4
#: How often an object is read again since another command has rewritten it.
ATTEMPTS = 5
SHA256 = "sha256"


@dataclass(slots=True)
class Findings:
    """What was found, and removed if it was to be.

    `not_searched` are objects that are missing or damaged, `lost` those that are gone and known to be lost,
    `messages_not_searched` keys in quarantine of which not all can be read. `rows` counts the chosen rows of all
    objects, `objects` those that have any, or have the classification in their footer.
    """

    objects_searched: int = 0
    messages_searched: int = 0
    removals_searched: int = 0
    rows: int = 0
    objects: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    not_searched: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    messages_not_searched: set[str] = field(default_factory=set)
    #: of a run that erases; also what an earlier run of the same erasure has rewritten
    rewritten_objects: list[RewrittenObject] = field(default_factory=list)
    rewritten_messages: dict[str, RewrittenMessage] = field(default_factory=dict)
    #: objects of which the catalog says something else than their footer
    outdated_entries: list[str] = field(default_factory=list)
    #: objects that have expired, of which the catalog still has an entry with the classification
    expired_entries: list[str] = field(default_factory=list)
    rewritten_removals: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        return not (self.objects or self.messages or self.removals)

    @property
    def all_not_searched(self) -> list[str]:
        return sorted({*self.not_searched, *self.lost, *self.messages_not_searched})

    @property
    def rewritten_keys(self) -> list[str]:
        objects = [each.file_path for each in self.rewritten_objects]
        return [*objects, *self.rewritten_messages, *self.rewritten_removals]


class BucketErasure:
    """Searches a bucket for the chosen records, and erases them if it has the id of an erasure."""

    def __init__(
        self,
        catalog: NatsCatalog,
        bucket: ErasableBucket,
        prefix: str,
        selection: Selection,
        chosen: Chosen,
        erasure_id: str | None = None,
        on_object: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._prefix = prefix
        self._selection = selection
        self._chosen = chosen
        self._erasure_id = erasure_id
        self._on_object = on_object
        self._found = Findings()
        #: the sizes of the objects with a removal record, None if unknown
        self._removed: Mapping[str, int | None] = {}

    async def run(self) -> Findings:
        """Search all objects that the catalog names, and what belongs to them."""
        removals = read_removals(self._bucket, self._prefix)
        self._removed = {each.file_path: each.bytes async for each in removals if each.file_path}
        batch: list[CatalogEntry] = []
        async for entry in self._entries():
            self._found.objects_searched += 1
            self._on_object()
            if self._may_have(entry):
                batch.append(entry)
            if len(batch) == AT_ONCE:
                await self._objects(batch)
                batch = []
        await self._objects(batch)
        async for removal in read_removals(self._bucket, self._prefix):
            await self._removal(removal)
        return self._found

    async def _entries(self) -> AsyncIterator[CatalogEntry]:
        for lane in sorted(await self._catalog.positions(), key=lambda lane: lane.stream):
            if self._selection.source not in {None, lane.source}:
                continue
            since = 1
            while page := await self._catalog.entries(lane, since):
                for _, entry in page:
                    yield entry
                since = page[-1][0] + 1

    def _may_have(self, entry: CatalogEntry) -> bool:
        """Whether an object may have chosen records, or the classification in its footer, by its entry."""
        wanted = self._selection.classification_id
        least, greatest = entry.classification_least, entry.classification_greatest
        if wanted is None or entry.quarantined or entry.erased is not msgspec.UNSET:
            return True
        if entry.records and (least is None or greatest is None or least <= wanted <= greatest):
            return True
        # a submission of several classifications may have it as its default
        return any(each.classification_id == wanted or each.classification_count != 1 for each in entry.submissions)

    # --- an object

    async def _objects(self, entries: Sequence[CatalogEntry]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for entry in entries:
                    group.create_task(self._object(entry))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _object(self, entry: CatalogEntry) -> None:
        key = entry.file_path
        try:
            await self._erase_from(key, entry)
        except (Halted, NotABronzeObject) as error:
            if self._erasure_id is not None:
                raise Halted(
                    f"{key} cannot be searched: {error.__cause__ or error}. Restore it; or, if it is lost, delete it "
                    "and acknowledge its loss (`bronze objects acknowledge`). Then run this command again"
                ) from error
            self._found.not_searched.append(key)

    def _is_removed(self, key: str, head: Head | None) -> bool:
        """Whether the removal record of an object counts: the object is gone, or what is left of it is damaged."""
        return key in self._removed and (head is None or self._removed[key] not in {None, head.stored_size})

    async def _erase_from(self, key: str, entry: CatalogEntry) -> None:
        for _ in range(ATTEMPTS):
            head = await self._bucket.head(key)
            if self._is_removed(key, head):
                (self._found.not_searched if head else self._found.lost).append(key)
                return
            stored = await read_object(self._bucket, key) if head else None
            if head is None or stored is None:
                if not await read_removal(self._bucket, self._prefix, key):
                    self._found.not_searched.append(key)  # it is missing, and may come back
                elif _is_named(entry, self._chosen):
                    self._found.expired_entries.append(key)
                return
            contents = stored.contents
            if contents.erasures and entry_of(contents, entry.totals) != entry:
                self._found.outdated_entries.append(key)
            messages = [await self._message(message) for message in contents.quarantined]
            rows = await self._rows(key, contents)
            if rows is None:
                continue  # it was deleted meanwhile
            footer_changes = messages != contents.quarantined or self._is_in_footer(contents)
            if not rows and not footer_changes:
                self._add_earlier(contents, head.size, head.metadata.get(SHA256))
                return
            if self._erasure_id is None:
                break
            try:
                body = await self._bucket.read(key, 0, head.size)
            except NoSuchKey:
                continue
            rewritten = await asyncio.to_thread(erase_rows, body, self._chosen, self._erasure_id, messages)
            if rewritten is None:
                return
            metadata = user_metadata(rewritten.contents)
            if await self._bucket.replace(key, rewritten.body, metadata, CONTENT_TYPE, head.etag):
                self._add(rewritten)
                break
        else:
            raise _conflict(key)
        self._found.objects.append(key)
        self._found.rows += rows

    async def _rows(self, key: str, contents: Contents) -> int | None:
        return await read_in_thread(self._bucket, key, self._chosen.count) if contents.rows else 0

    def _is_in_footer(self, contents: Contents) -> bool:
        """Whether the footer has the classification, also without a row of it."""
        submissions = [stored.accepted for stored in contents.submissions]
        return [self._chosen.cleared(accepted) for accepted in submissions] != submissions

    def _add(self, rewritten: Rewritten) -> None:
        self._add_earlier(rewritten.contents, len(rewritten.body), hashlib.sha256(rewritten.body).hexdigest())

    def _add_earlier(self, contents: Contents, size: int, sha256: str | None) -> None:
        """Add what this erasure has removed from an object, by the object's own footer."""
        erasures = contents.erasures or []
        mine = [erased for erased in erasures if erased.erasure_id == self._erasure_id]
        if not mine:
            return
        begin = erasures.index(mine[0])
        rows_before = contents.records - _records(erasures[:begin])
        rows_erased = _records(mine)
        self._found.rewritten_objects.append(
            RewrittenObject(
                file_path=contents.file_path,
                rows_before=rows_before,
                rows_erased=rows_erased,
                rows_after=contents.rows,
                bytes_before=mine[0].bytes,
                bytes_after=size,
                sha256_before=mine[0].sha256,
                sha256_after=sha256,
            )
        )

    # --- a message in quarantine

    async def _message(self, message: QuarantinedMessage) -> QuarantinedMessage:
        """Erase the chosen records of a message; returns what the footer says of it from now on."""
        try:
            part = Part.parse(message.headers)
        except DeadLetter:
            part = None
        erased = await self._content(message.key, part)
        # of a person's message nothing but that it existed is kept: a reason may quote a value
        all_erased = erased is not None and erased.has_no_records(message.key)
        cleared = cleared_message(message, self._chosen, all_erased=all_erased)
        if erased is None or message.kind is MessageKind.REJECTED:
            return cleared
        return msgspec.structs.replace(cleared, reason=_reason(erased))

    async def _content(self, key: str, part: Part | None) -> ErasedContent | None:
        """What is left of the content of a message; None if it had no chosen records."""
        for _ in range(ATTEMPTS):
            head = await self._bucket.head(key)
            if head is None:
                return None
            try:
                content = await self._bucket.read(key, 0, head.size) if head.size else b""
            except NoSuchKey:
                return None
            self._found.messages_searched += 1
            metadata = QuarantineMetadata.parse(head.metadata)
            note = _MessageNote.parse(metadata.erased)
            try:
                erased = erase_records(key, content, part, self._chosen)
            except NotSearchable:
                self._found.messages_not_searched.add(key)
                erased = None
            if erased is None:
                if note is None or note.erasure_id != self._erasure_id:
                    return None
                # an earlier run of this erasure was killed before the object's footer said so
                self._found.rewritten_messages[key] = note.rewritten(key, head.size, head.metadata.get(SHA256))
                return ErasedContent(content, note.records)
            if self._erasure_id is None:
                break
            note = _MessageNote(self._erasure_id, erased.records, head.size, hashlib.sha256(content).hexdigest())
            reason = metadata.reason if key.endswith(".rejected") else _reason(erased)
            new = replace(metadata, reason=reason, erased=str(note)).encode()
            if await self._bucket.replace(key, erased.content, new, QUARANTINE_CONTENT_TYPE, head.etag):
                sha256 = hashlib.sha256(erased.content).hexdigest()
                self._found.rewritten_messages[key] = note.rewritten(key, len(erased.content), sha256)
                break
        else:
            raise _conflict(key)
        self._found.messages.append(key)
        if erased.not_searched:
            self._found.messages_not_searched.add(key)
        return erased

    # --- a removal record

    async def _removal(self, removal: Removal) -> None:
        """The record of an object that is gone, and the messages that the object has left in quarantine."""
        self._found.removals_searched += 1
        key = removal.key(self._prefix)
        if removal.entry and self._selection.source in {None, removal.source}:
            path = removal.file_path
            is_gone = not path or self._is_removed(path, await self._bucket.head(path))
            for message in removal.entry.quarantined if is_gone else []:
                await self._content(message, None)
        cleared = _cleared_removal(removal, self._chosen)
        if cleared == removal:
            if self._erasure_id in removal.erasures:
                self._found.rewritten_removals.append(key)
            return
        self._found.removals.append(key)
        if self._erasure_id is None:
            return
        head = await self._bucket.head(key)
        if head is None:
            return  # it has expired
        new = msgspec.structs.replace(cleared, erasures=[*removal.erasures, self._erasure_id])
        if not await self._bucket.replace(key, msgspec.json.encode(new), {}, REMOVAL_CONTENT_TYPE, head.etag):
            raise _conflict(key)
        self._found.rewritten_removals.append(key)


@dataclass(frozen=True, slots=True)
class _MessageNote:
    """What the last erasure has removed from a message in quarantine, as its user metadata says."""

    erasure_id: str
    records: int | None
    bytes: int
    sha256: str

    def __str__(self) -> str:
        records = "all" if self.records is None else self.records
        return f"{self.erasure_id} {records} {self.bytes} {self.sha256}"

    @classmethod
    def parse(cls, text: str) -> "_MessageNote | None":
        if not text:
            return None
        erasure_id, records, size, sha256 = text.split(" ")
        return cls(erasure_id, None if records == "all" else int(records), int(size), sha256)

    def rewritten(self, key: str, size: int, sha256: str | None) -> RewrittenMessage:
        return RewrittenMessage(
            key=key,
            records_erased=self.records,
            bytes_before=self.bytes,
            bytes_after=size,
            sha256_before=self.sha256,
            sha256_after=sha256,
        )


def _reason(erased: ErasedContent) -> str:
    """Why a dead letter is in quarantine: the reason that it had may quote a value of a record."""
    return "erased" if erased.nothing_left else "a part of it was erased, and with it the reason"


def _records(erasures: list[ErasedRows]) -> int:
    return sum(erased.records for erased in erasures)


def _is_named(entry: CatalogEntry, chosen: Chosen) -> bool:
    """Whether the classification is in an entry."""
    if chosen.classification_id is None or (entry.submissions and all(map(chosen.is_too_new, entry.submissions))):
        return False
    of_rows = {*entry.classifications, entry.classification_least, entry.classification_greatest}
    named = {each.classification_id for each in entry.submissions if not chosen.is_too_new(each)}
    return chosen.classification_id in of_rows | named


def _cleared_removal(removal: Removal, chosen: Chosen) -> Removal:
    """The removal record without the classification."""
    entry, wanted = removal.entry, chosen.classification_id
    if entry is None or wanted is None:
        return removal
    if entry.submissions and all(map(chosen.is_too_new, entry.submissions)):
        return removal
    is_bound = wanted in {entry.classification_least, entry.classification_greatest}
    submissions = [
        msgspec.structs.replace(each, classification_id=None)
        if each.classification_id == wanted and not chosen.is_too_new(each)
        else each
        for each in entry.submissions
    ]
    bounds: Mapping[str, None] = {"classification_least": None, "classification_greatest": None} if is_bound else {}
    classifications = [each for each in entry.classifications if each != wanted]
    cleared = msgspec.structs.replace(entry, submissions=submissions, classifications=classifications, **bounds)
    identities = [
        msgspec.structs.replace(identity, accepted=chosen.cleared(identity.accepted)) for identity in removal.identities
    ]
    return msgspec.structs.replace(removal, entry=cleared, identities=identities)


def _conflict(key: str) -> Unavailable:
    return Unavailable(Outage.CONFLICT, f"{key} was changed by another command. Run this command again")


def lane_name(lane: Lane) -> str:
    """A lane as the other commands name it."""
    return f"{lane.source}.{lane.number}.{lane.epoch}"
