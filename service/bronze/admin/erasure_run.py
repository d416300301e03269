"""`bronze erase`: from the document to the proof, in the order in which a run that is killed can be continued.

1. The document, which has the selection as a hash, is created before anything is changed, if no object is missing.
2. What the queue had at the start is stored by the consumers.
3. Objects, messages in quarantine and removal records are rewritten (`erasure.py`), then those of the tables.
4. The catalog is rebuilt: after that none of its messages has the classification.
5. Where the last stored message of a lane has such records, an empty submission follows it, so that it can be purged.
6. The proof is created. Without it, the next run does all of this again, and finds nothing of what is done.
"""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from bronze.admin.command_error import CommandError
from bronze.admin.erasure import BucketErasure, Findings
from bronze.admin.erasure_queue import QueueErasure
from bronze.admin.missing_objects import find_missing
from bronze.errors import Outage, Unavailable
from bronze.maintenance.task import Task, TooManyConflicts
from bronze.objects.erasures import find_open, write_document, write_proof
from bronze.objects.selection import Chosen
from bronze.plurals import counted
from bronze.protocol.erasure import Erasure, LaneRest, Proof, Searched, Selection, SelectionHash
from bronze.protocol.submission_id import new_id
from bronze.records.sources import CANARY, Source
from bronze.servers.bucket import ErasableBucket
from bronze.servers.catalog import REBUILD, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import JetStream
from bronze.servers.queue import LaneAdmin

#: What was done to each table, or found in it; None without a catalog of tables.
TableResults = list[dict[str, str | int | None]] | None

#: Objects that an error names at most.
NAMED = 10
#: The copies that no command of Bronze reaches, and how long they stay.
NOT_REACHED: Mapping[str, str] = {
    "traces": "the spans of submissions and uploads have classification_ids (bronze.classification_id), at most 128 "
    "each, for the retention of the trace store (TEMPO_RETENTION, 15 days unless it is set; Zipkin: until it stops), "
    "and what the collector could not send yet, on its disk",
    "logs": "they have submission_ids and reasons, not classification_ids; reasons may quote a value. For the "
    "retention of the place where the logs go",
    "metrics": "no label and no exemplar has an id of a record. But bronze.field.min and bronze.field.max are the "
    "smallest and the greatest of the numbers, times and dates of an object: for the retention of the store of metrics",
    "backups": "of the bucket and of the queue: until they are deleted. After a restore, run the erasure again",
    "files that the catalog does not name": "copies of objects below the prefix, and messages in quarantine that no "
    "object lists: until they are deleted",
    "old versions of the files of tables": "if their storage keeps versions: until a rule of the storage deletes them",
    "unfinished uploads of files of tables": "a program that was killed leaves the parts that it had sent, which no "
    "reader sees: until a rule of the storage deletes them (AbortIncompleteMultipartUpload)",
    "copies of readers": "what readers of the bucket, of the feed and of the tables have written elsewhere",
    "receivers of events": "webhooks and lineage servers got the classification_ids of objects (bronze notify)",
    "senders": "the files and databases that the records came from; a sender that sends them again stores them again",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """Who erases, why, in their own words, and since when."""

    note: str
    erased_by: str
    began_at: str


@dataclass(frozen=True, slots=True)
class Stores:
    """All that may have records of a person.

    `rebuild` replaces the catalog by one made from the bucket. `tables` makes the task that erases the chosen rows from
    the table of a source, for an erasure; None without a catalog of tables. It blocks.
    """

    jetstream: JetStream
    feed: Feed
    queue: LaneAdmin
    bucket: ErasableBucket
    prefix: str
    sources: Mapping[str, Source]
    find_catalog: Callable[[], Awaitable[NatsCatalog | None]]
    rebuild: Callable[[], Awaitable[None]]
    tables: Callable[[Chosen, str], Task] | None = None
    now: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))

    async def complete_catalog(self) -> NatsCatalog | None:
        """None if there is none, or if one is being rebuilt."""
        catalog = await self.find_catalog()
        return None if catalog is None or await catalog.is_being_rebuilt() else catalog

    async def open_catalog(self) -> NatsCatalog:
        """The complete catalog. Raises `Unavailable` if there is none."""
        catalog = await self.complete_catalog()
        if catalog is None:
            raise Unavailable(
                Outage.CONFLICT,
                "the catalog is not complete: it is being rebuilt, or a command that rebuilt it was interrupted. Run "
                f"that command again, or `{REBUILD}`",
            )
        return catalog

    async def sources_of(self, selection: Selection, catalog: NatsCatalog) -> list[str]:
        """The sources that may have chosen records."""
        if selection.source is not None:
            return [selection.source]
        return sorted({*self.sources, *(lane.source for lane in await catalog.positions())})

    async def in_tables(self, sources: Sequence[str], chosen: Chosen, erasure_id: str | None = None) -> TableResults:
        """Erase the chosen rows from the tables of these sources; without the id of an erasure, only look for them.

        None without a catalog of tables. Raises `Unavailable`, and `Halted` if a table must not be changed.
        """
        if self.tables is None:
            return None
        task = self.tables(chosen, erasure_id or "")
        found = []
        try:
            for source in sources:
                if source != CANARY:  # also one that is no longer declared: its table stays
                    if erasure_id is None:
                        done = await asyncio.to_thread(task.plan, source)
                    else:
                        done = await asyncio.to_thread(task.run, source, lambda: None)
                    found.append(done.as_dict())
        except TooManyConflicts as error:
            raise Unavailable(Outage.CONFLICT, str(error)) from error
        return found

    def queue_erasure(self, catalog: NatsCatalog, sources: Sequence[str], chosen: Chosen) -> QueueErasure:
        return QueueErasure(self.queue, self.jetstream, catalog, sources, chosen)


@dataclass(frozen=True, slots=True)
class Preview:
    """What an erasure would remove. `waiting` messages of the queue are not stored yet, and not searched.

    `continued` is the erasure of the same selection that was begun and is not done; `tables` as those of a proof.
    """

    findings: Findings
    waiting: int
    continued: Erasure | None
    tables: TableResults = None


async def was_rebuilding(stores: Stores, selection: Selection) -> bool:
    """Whether an erasure of the same selection was interrupted while the catalog was rebuilt: nothing can be searched
    before it is continued.
    """
    if await stores.complete_catalog() is not None:
        return False
    return await find_open(stores.bucket, stores.prefix, selection) is not None


async def preview(
    stores: Stores, selection: Selection, chosen: Chosen, began_at: str, on_object: Callable[[], None]
) -> Preview:
    """Search for what was accepted before the command, or the erasure that it continues, began. Changes nothing."""
    continued = await find_open(stores.bucket, stores.prefix, selection)
    chosen = chosen.before(continued.began_at if continued else began_at)
    catalog = await stores.open_catalog()
    sources = await stores.sources_of(selection, catalog)
    queue = stores.queue_erasure(catalog, sources, chosen)
    waiting = await queue.waiting(await queue.ends())
    findings = await BucketErasure(catalog, stores.bucket, stores.prefix, selection, chosen, on_object=on_object).run()
    tables = await stores.in_tables(sources, chosen)
    return Preview(findings, waiting, continued, tables)


async def erase(
    stores: Stores,
    selection: Selection,
    chosen: Chosen,
    statement: Statement,
    wait_s: float,
    on_object: Callable[[], None] = lambda: None,
) -> Proof:
    """Erase what was accepted before the statement, or continue an erasure of the same selection. Returns the proof.

    Raises `Unavailable` if a server does not answer, or if the consumers do not store what waits within `wait_s`, and
    `CommandError` before anything is changed if objects are missing or damaged: the catalog could not be rebuilt.
    """
    erasure = await find_open(stores.bucket, stores.prefix, selection)
    if erasure is not None:
        await _finish_rebuild(stores)
    catalog = await stores.open_catalog()
    await _check_nothing_missing(stores)
    if erasure is None:
        erasure = Erasure(
            erasure_id=new_id(),
            kind=selection.kind,
            source=selection.source,
            selection=SelectionHash.of(selection),
            erased_by=statement.erased_by,
            note=statement.note,
            began_at=statement.began_at,
        )
        await write_document(stores.bucket, stores.prefix, erasure)
    chosen = chosen.before(erasure.began_at)
    sources = await stores.sources_of(selection, catalog)
    queue = stores.queue_erasure(catalog, sources, chosen)
    ends = await queue.ends()
    await queue.wait_until_stored(ends, wait_s)
    found = await BucketErasure(
        catalog, stores.bucket, stores.prefix, selection, chosen, erasure.erasure_id, on_object
    ).run()
    tables = await stores.in_tables(sources, chosen, erasure.erasure_id)
    is_changed = bool(found.rewritten_keys or found.expired_entries)  # a rebuild leaves the entries out
    if is_changed:
        await stores.rebuild()
        catalog = await stores.open_catalog()
    deleted, left = await _delete_old_versions(stores.bucket, found.rewritten_keys)
    queue = stores.queue_erasure(catalog, sources, chosen)
    await queue.move_anchors(stores.now())
    proof = Proof(
        erasure=erasure,
        finished_at=stores.now().isoformat(),
        searched=Searched(
            objects=found.objects_searched,
            messages_in_quarantine=found.messages_searched,
            removal_records=found.removals_searched,
            lanes=len(ends),
        ),
        objects=sorted(found.rewritten_objects, key=lambda each: each.file_path),
        quarantine=[message for _, message in sorted(found.rewritten_messages.items())],
        removal_records=found.rewritten_removals,
        catalog_rebuilt=is_changed,
        old_versions_deleted=deleted,
        old_versions_left=left,
        not_searched=found.all_not_searched,
        lanes=await queue.rest(),
        tables=tables,
        not_reached=dict(NOT_REACHED),
    )
    return await write_proof(stores.bucket, stores.prefix, proof)


async def _finish_rebuild(stores: Stores) -> None:
    """An earlier run may have been killed while it rebuilt the catalog, from objects without the erased rows."""
    if await stores.complete_catalog() is None:
        await stores.rebuild()


async def _check_nothing_missing(stores: Stores) -> None:
    found = await find_missing(stores.feed, stores.bucket, stores.prefix, None, lambda: None)
    missing = [each.file_path for each in found if not each.removed]
    if missing:
        more = f", and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        raise CommandError(
            f"{counted(len(missing), 'object')} of the catalog are missing in the bucket, or damaged: "
            f"{', '.join(missing[:NAMED])}{more}. Nothing was erased. `bronze objects missing` lists them. Restore "
            "them; what is lost, acknowledge with `bronze objects acknowledge`. Then run this command again"
        )


async def _delete_old_versions(bucket: ErasableBucket, keys: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Delete the old versions of rewritten keys; returns how many, and the keys that may still have some, with why."""
    deleted = 0
    for number, key in enumerate(keys):
        try:
            for version in await bucket.old_versions(key):
                await bucket.delete_version(key, version)
                deleted += 1
        except Unavailable as error:
            # the others would be refused as well; nothing is claimed of them
            return deleted, dict.fromkeys(keys[number:], str(error))
    return deleted, {}


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of what an erasure had to remove. Of records that were accepted since it began, nothing is said."""

    findings: Findings
    catalog: int
    lanes: list[LaneRest]
    old_versions: dict[str, str]
    tables: TableResults

    @property
    def by_store(self) -> dict[str, int | None]:
        """How much is left in each store; None if it was not searched."""
        return {
            "rows": self.findings.rows,
            "objects": len(self.findings.objects),
            "messages in quarantine": len(self.findings.messages),
            "removal records": len(self.findings.removals),
            "catalog": self.catalog,
            "lanes of the queue": len(self.lanes),
            "old versions": len(self.old_versions),
            "tables": None if self.tables is None else sum(map(_has_rows, self.tables)),
        }

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left, and nothing is in question."""
        in_question = self.findings.not_searched or self.findings.messages_not_searched
        return not any(self.by_store.values()) and not in_question


def _has_rows(table: Mapping[str, str | int | None]) -> bool:
    """Whether a table, one of its older snapshots, or a file without a snapshot has chosen rows."""
    return any(table[name] for name in ("rows", "files", "snapshots"))


async def check(
    stores: Stores, proof: Proof, selection: Selection, chosen: Chosen, on_object: Callable[[], None]
) -> Rest:
    """Search again for what was accepted before an erasure began, in everything that it has searched."""
    chosen = chosen.before(proof.erasure.began_at)
    catalog = await stores.open_catalog()
    sources = await stores.sources_of(selection, catalog)
    findings = await BucketErasure(catalog, stores.bucket, stores.prefix, selection, chosen, on_object=on_object).run()
    in_catalog = len(findings.outdated_entries) + len(findings.expired_entries)
    async for identity in catalog.all_identities():
        in_catalog += chosen.cleared(identity.accepted) != identity.accepted
    versions: dict[str, str] = {}
    rewritten = (each.file_path for each in proof.objects), (each.key for each in proof.quarantine)
    for key in (*chain(*rewritten), *proof.removal_records):
        try:
            if old := await stores.bucket.old_versions(key):
                versions[key] = ", ".join(old)
        except Unavailable as error:
            versions[key] = str(error)
    tables = await stores.in_tables(sources, chosen)
    lanes = await stores.queue_erasure(catalog, sources, chosen).rest()
    return Rest(findings, in_catalog, lanes, versions, tables)
