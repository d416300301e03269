"""The catalog index of an API (its view of the catalog): what it takes to build and to keep it, and each look-up.

The entries are invented, but come in pages as the catalog's feed has them, through the index's own code.
"""

import argparse
import asyncio
import datetime as dt
import hashlib
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import msgspec
from rich.progress import Progress

from benchmarks.rounds import Figures, Found, Target, quantile
from benchmarks.stand import STATE, Options, console, keep, say
from bronze.api.feed import LIMIT_MAX as EVENTS_MAX
from bronze.api.page import NEWEST_MAX, NEWEST_OF_SOURCE_MAX, REJECTIONS_MAX
from bronze.lineage.catalog_index import CatalogIndex, EventPage, IdKind
from bronze.lineage.lookup import LIMIT, LIMIT_MAX, SEARCHED_MAX
from bronze.protocol.documents import CatalogEntry, trace_id_of
from bronze.protocol.feed_cursor import FeedCursor
from bronze.protocol.removal import Removal, RemovalReason
from bronze.servers.catalog_feed import (
    FEED_BYTES_MAX,
    FEED_MESSAGES_MAX,
    Feed,
    FeedEntry,
    FeedPage,
    FeedPosition,
    RemovalsPage,
)

FOLDER = STATE / "view"
LOOK_UP_MS_MAX = 50.0
START_S_MAX = 10.0
#: Pages of entries that are invented before they are read.
PAGES_AHEAD = 8
#: Look-ups of a kind, each of another id.
TIMES = 40

SOURCES = ("failures", "results", "status", "vehicles")
LANES_PER_SOURCE = 8
LANES = len(SOURCES) * LANES_PER_SOURCE
#: Seconds from an object to the next one: a lane has one every 15 s.
STEP_S = 15 / LANES
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
#: Every so many submissions belong to one classification; another one has a submission of every so many objects.
CLASSIFICATION_SUBMISSIONS = 20
SHARED_OBJECTS = 50
SHARED = "all-of-the-plant"
#: One of so many objects was removed, and one has messages in quarantine.
REMOVED, QUARANTINED = 100, 1_000
#: Every so many objects, the classifications of one are only in its column: of this many vehicles, or of the time.
IN_COLUMN, VEHICLES = 2, 100_000
RECORDS = 1_000


@dataclass(frozen=True)
class Catalog:
    """A catalog of so many objects with so many submissions each. Its entries follow from their numbers, from 0."""

    objects: int
    submissions: int

    def lane(self, number: int) -> tuple[str, int]:
        return SOURCES[number % len(SOURCES)], number % LANES // len(SOURCES)

    def time(self, number: int) -> dt.datetime:
        return BEGIN + dt.timedelta(seconds=number * STEP_S)

    def file_path(self, number: int) -> str:
        source, lane = self.lane(number)
        time = self.time(number)
        return (
            f"bronze/source={source}/date={time:%Y-%m-%d}/hour={time:%H}/{time:%Y%m%dT%H%M%S}000000000-{lane:03d}-"
            f"20260101T000000000-{self.first(number):020d}.parquet"
        )

    def first(self, number: int) -> int:
        return number // LANES * self.submissions + 1

    def classifications(self, number: int) -> tuple[str, str]:
        """The least and the greatest classification of an object whose column has them: half are of one vehicle."""
        if number % (2 * IN_COLUMN):
            vehicle = int(_id("vehicle", number), 16) % VEHICLES
            return f"N{vehicle:06d}/2026-01-01T00", f"N{vehicle:06d}/2026-12-31T23"
        return f"f-{number * STEP_S:015.3f}", f"f-{(number + LANES) * STEP_S:015.3f}"

    def is_in_column(self, number: int) -> bool:
        return number % IN_COLUMN == 0 or number % 4 == 1

    def entry(self, number: int) -> CatalogEntry:
        source, lane = self.lane(number)
        time = self.time(number).isoformat(timespec="microseconds")
        least, greatest = self.classifications(number)
        in_column = self.is_in_column(number)
        first = self.first(number)
        objects = number // LANES + 1
        document = (
            f'{{"file_path":"{self.file_path(number)}","source":"{source}","epoch":"20260101T000000000","lane":{lane},'
            f'"first":{first},"last":{first + self.submissions - 1},"last_time":"{time}",'
            f'"records":{self.submissions * RECORDS},"messages":{self.submissions},'
            f'"traceparent":"00-{_id("upload", number)}-{"0" * 15}1-01","submissions":['
            + ",".join(self._submission(number, n, time, in_column=in_column) for n in range(self.submissions))
            + f'],"quarantined":{[_id("q", number)] if number % QUARANTINED == 0 else []},"duplicates":0,'
            f'"written_at":"{time}","classification_count":{RECORDS},"classification_least":"{least}",'
            f'"classification_greatest":"{greatest}","totals":{{"objects":{objects},"bytes":{objects * 4_000_000},'
            f'"records":{objects * RECORDS},"quarantined":0,"rejected":0,"duplicates":0}},"schema_versions":[1]}}'
        ).replace("'", '"')
        return msgspec.json.decode(document, type=CatalogEntry)

    def submission_id(self, number: int, n: int) -> str:
        found = _id("submission", number * self.submissions + n)
        return f"{found[:8]}-{found[8:12]}-7{found[13:16]}-{found[16:20]}-{found[20:]}"

    def trace_id(self, number: int, n: int) -> str:
        return _id("trace", number * self.submissions + n)

    def classification_id(self, number: int, n: int) -> str:
        if n == 1 and number % SHARED_OBJECTS == 0:
            return SHARED
        return _id("classification", (number * self.submissions + n) // CLASSIFICATION_SUBMISSIONS)

    def _submission(self, number: int, n: int, time: str, *, in_column: bool) -> str:
        classification = f'"{self.classification_id(number, n)}"' if n or not in_column else "null"
        return (
            f'{{"submission_id":"{self.submission_id(number, n)}","trace_id":"{self.trace_id(number, n)}",'
            f'"records":{RECORDS},"received_at":"{time}","queued_at":"{time}","classification_id":{classification},'
            f'"classification_count":1,"principal":"gate-{n % 8}"}}'
        )

    def removal(self, number: int) -> Removal:
        entry = self.entry(number)
        return Removal(
            source=entry.source,
            epoch=entry.epoch,
            lane=entry.lane,
            first=entry.first,
            last=entry.last,
            reason=RemovalReason.ACKNOWLEDGED,
            note="deleted by the plan of deletion",
            removed_by="operator",
            recorded_at=entry.written_at,
            file_path=entry.file_path,
            records=entry.records,
        )


#: What an object takes and what a submission takes follow from two of them.
MANY_SUBMISSIONS, MANY_OBJECTS, QUICK = Catalog(20_000, 100), Catalog(100_000, 10), Catalog(3_000, 10)


def _id(kind: str, number: int) -> str:
    """An id of 32 hexadecimal digits that looks random, made faster than by a hash."""
    mixed = (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 ^ _salt(kind)
    return f"{(mixed ^ mixed >> 61) * 0xD1342543DE82EF95 & 2**128 - 1:032x}"


@cache
def _salt(kind: str) -> int:
    return int.from_bytes(hashlib.blake2b(kind.encode(), digest_size=16).digest())


def _encoded(catalog: Catalog, numbers: range) -> Sequence[bytes]:
    return [msgspec.json.encode(catalog.entry(number)) for number in numbers]


class CatalogPages:
    """A catalog's entries and removals in pages of the feed's size; `making_s` is how long it took to invent them, or
    to wait for `inventors`, which do it ahead in other processes.
    """

    def __init__(self, catalog: Catalog, inventors: Executor | None = None) -> None:
        self._catalog = catalog
        self._inventors = inventors
        self._ahead: deque[tuple[int, Future[Sequence[bytes]]]] = deque()
        self.making_s = self.making_cpu_s = 0.0
        self.entry_bytes = len(msgspec.json.encode(catalog.entry(1)))
        self._page = max(1, min(FEED_MESSAGES_MAX, FEED_BYTES_MAX // self.entry_bytes))

    async def read(self, after: FeedPosition) -> FeedPage:
        began, cpu, catalog = time.perf_counter(), time.thread_time(), self._catalog
        last = min(after.sequence + self._page, catalog.objects)
        entries = [
            FeedEntry(number + 1, catalog.time(number).isoformat(), entry)
            for number, entry in enumerate(self._entries(range(after.sequence, last)), after.sequence)
        ]
        self.making_s += time.perf_counter() - began
        self.making_cpu_s += time.thread_time() - cpu
        return FeedPage(FeedPosition("CATALOG", last), entries, catalog.objects - last)

    def _entries(self, numbers: range) -> Iterable[CatalogEntry]:
        if self._inventors is None:
            return map(self._catalog.entry, numbers)
        first = self._ahead[-1][0] + self._page if self._ahead else numbers.start
        for begin in range(first, min(numbers.start + PAGES_AHEAD * self._page, self._catalog.objects), self._page):
            of_page = range(begin, min(begin + self._page, self._catalog.objects))
            self._ahead.append((begin, self._inventors.submit(_encoded, self._catalog, of_page)))
        if not self._ahead:
            return ()
        _, encoded = self._ahead.popleft()
        return [msgspec.json.decode(entry, type=CatalogEntry) for entry in encoded.result()]

    async def read_removals(self, after: FeedPosition) -> RemovalsPage:
        began, cpu, all_of_them = time.perf_counter(), time.thread_time(), self._catalog.objects // REMOVED
        last = min(after.sequence + FEED_MESSAGES_MAX, all_of_them)
        removals = [
            (number + 1, self._catalog.removal(number * REMOVED + number % REMOVED))
            for number in range(after.sequence, last)
        ]
        self.making_s += time.perf_counter() - began
        self.making_cpu_s += time.thread_time() - cpu
        return RemovalsPage(FeedPosition("CATALOG", last), removals, all_of_them - last)


# --- built, started and asked, each in a process of its own


def build(catalog: Catalog) -> Figures:
    """Follows the catalog from its begin to its end."""
    return asyncio.run(_build(catalog))


async def _build(catalog: Catalog) -> Figures:
    index = await CatalogIndex(FOLDER).open()
    began, cpu = time.perf_counter(), time.process_time()
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as inventors,
        Progress(console=console) as progress,
    ):
        pages = CatalogPages(catalog, inventors)
        task = progress.add_task(f"{catalog.objects:,} objects", total=catalog.objects)
        complete = False
        while not complete:
            complete = await index.catch_up(cast(Feed, pages))
            progress.update(task, completed=index.position.sequence)
        took_s = time.perf_counter() - began - pages.making_s
        cpu_s = time.process_time() - cpu - pages.making_cpu_s
    await index.close()
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    return {
        "objects": catalog.objects,
        "submissions": catalog.objects * catalog.submissions,
        "build, s": took_s,
        "CPU build, s": cpu_s,
        "GB": size / 1e9,
        "kB per object": size / 1e3 / catalog.objects,
        "kB of the entry": pages.entry_bytes / 1e3,
        "build peak, MB": _status_kib("VmHWM") * 1024 / 1e6,
    }


def start(catalog: Catalog) -> Figures:
    """Opens the kept view, of which nothing is in memory, until it knows that it has the complete catalog."""
    return asyncio.run(_start(catalog))


async def _start(catalog: Catalog) -> Figures:
    _forget_files()
    before, began = _status_kib("RssAnon"), time.perf_counter()
    index = await CatalogIndex(FOLDER).open()
    while not await index.catch_up(cast(Feed, CatalogPages(catalog))):
        pass
    took_s = time.perf_counter() - began
    for asked in look_ups(index, catalog).values():
        for look_up in asked:
            await look_up()
    own = (_status_kib("RssAnon") - before) * 1024 / 1e6
    await index.close()
    return {"start, s": took_s, "memory after look-ups, MB": own}


def ask(catalog: Catalog) -> Mapping[str, Figures]:
    """Each look-up: with nothing of the view in memory, and after all of that kind were asked."""
    return asyncio.run(_ask(catalog))


async def _ask(catalog: Catalog) -> Mapping[str, Figures]:
    found: dict[str, Figures] = {}
    index = await CatalogIndex(FOLDER).open()
    while not await index.catch_up(cast(Feed, CatalogPages(catalog))):
        pass
    for name, asked in look_ups(index, catalog).items():
        cold = []
        for look_up in asked:
            await index._run(index._close)  # noqa: SLF001  the look-ups are of this index, which opens again
            _forget_files()
            await index.open()
            cold.append(await _ms(look_up))
        for look_up in asked:
            await look_up()
        cpu = time.process_time()
        warm = [await _ms(look_up) for look_up in asked]
        cpu_ms = (time.process_time() - cpu) / len(asked) * 1000
        found[name] = {
            "cold p50, ms": quantile(cold, 0.5),
            "cold max, ms": max(cold),
            "warm p50, ms": quantile(warm, 0.5),
            "warm max, ms": max(warm),
            "warm CPU, ms": cpu_ms,
        }
    await index.close()
    return found


LookUp = Callable[[], Awaitable[object]]


def look_ups(index: CatalogIndex, catalog: Catalog) -> Mapping[str, Sequence[LookUp]]:
    """All look-ups on the index that page, feed and lineage make, by what they ask."""
    objects = [catalog.objects * n // TIMES for n in range(TIMES)]
    one_source = frozenset({"status"})

    def by_id(kind: IdKind, ids: Iterable[str], limit: int = LIMIT) -> list[LookUp]:
        return [lambda text=text: index.by_id(kind, text, limit + 1, lambda item: item.sequence) for text in ids]  # type: ignore[misc]

    def candidates(ids: Iterable[str], sources: frozenset[str] | None = None) -> list[LookUp]:
        return [lambda text=text: index.candidates(text, SEARCHED_MAX + 1, sources) for text in ids]  # type: ignore[misc]

    def events(cursor: FeedCursor, since: dt.datetime | None, sources: frozenset[str] | None) -> LookUp:
        return lambda: index.events(cursor, sources, EVENTS_MAX, _events, since)

    end = catalog.time(catalog.objects)
    in_column = [n - n % 4 for n in objects]
    return {
        "a submission": by_id(IdKind.SUBMISSION, (catalog.submission_id(n, 0) for n in objects)),
        "a trace": by_id(IdKind.TRACE, (catalog.trace_id(n, 1) for n in objects)),
        "a write": by_id(IdKind.TRACE, (trace_id_of(catalog.entry(n).traceparent) for n in objects)),
        "an unknown id": by_id(IdKind.SUBMISSION, (_id("unknown", n) for n in objects)),
        "a classification": by_id(IdKind.CLASSIFICATION, (catalog.classification_id(n, 2) for n in objects)),
        "one of many objects": by_id(IdKind.CLASSIFICATION, [SHARED] * 5),
        f"one of many, {LIMIT_MAX} wanted": by_id(IdKind.CLASSIFICATION, [SHARED] * 5, LIMIT_MAX),
        "in columns, by time": candidates(catalog.classifications(n)[0] for n in in_column),
        "in columns, of a vehicle": candidates(f"N{n % VEHICLES:06d}/2026-06-01T00" for n in objects),
        "in no column": candidates(_id("unknown", n) for n in objects),
        "in columns of a source": candidates((f"N{n % VEHICLES:06d}/2026-06-01T00" for n in objects), one_source),
        "an object": [lambda n=n: index.by_path(catalog.file_path(n), lambda item: item) for n in objects],  # type: ignore[misc]
        "an unknown object": [lambda n=n: index.by_path(f"bronze/{n}", lambda item: item) for n in objects],  # type: ignore[misc]
        "newest objects": [lambda: index.newest(None, NEWEST_MAX)] * 5,
        "newest objects of a source": [lambda: index.newest(one_source, NEWEST_OF_SOURCE_MAX)] * 5,
        "newest in quarantine": [lambda: index.newest_quarantined(None, REJECTIONS_MAX)] * 5,
        "totals": [lambda: index.totals(None)] * 5,
        "end of the feed": [lambda: index.latest(None)] * 5,
        "feed from the begin": [events(FeedCursor(), None, sources) for sources in (None, one_source)] * 3,
        "feed of the last hour": [events(FeedCursor(), end - dt.timedelta(hours=1), None)] * 5,
        "feed of the last half": [events(FeedCursor(), BEGIN + (end - BEGIN) / 2, None)] * 5,
        "feed of the future": [events(FeedCursor(), end + dt.timedelta(days=1), None)] * 5,
        "whether a source has objects": [lambda: index.has_source("status")] * 5,
    }


def _events(page: EventPage) -> int:
    return len(page.events)


async def _ms(look_up: LookUp) -> float:
    began = time.perf_counter()
    await look_up()
    return (time.perf_counter() - began) * 1000


def _forget_files() -> None:
    """Has the system forget what it keeps of the view's files in memory."""
    for file in FOLDER.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _status_kib(name: str) -> int:
    (kib,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(kib)


# --- the part of `make bench`


def run_with(catalogs: Sequence[Catalog], *, kept: bool = False) -> Found:
    """Builds an index of each catalog, unless one is kept, and starts from it; asks that of the last one."""
    runs: dict[str, Sequence[Figures]] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for catalog in catalogs:
            name = f"{catalog.objects:,} of {catalog.submissions}"
            say(f"{name}: objects, and submissions in each")
            if not kept:
                shutil.rmtree(FOLDER, ignore_errors=True)
            FOLDER.mkdir(parents=True, exist_ok=True)
            built = {} if kept else processes.submit(build, catalog).result()
            runs[name] = [{**built, **processes.submit(start, catalog).result()}]
        say("asking the last one")
        asked = processes.submit(ask, catalogs[-1]).result()
    # as many results as a look-up may have take in proportion
    figures = [of_one for name, of_one in asked.items() if str(LIMIT_MAX) not in name]
    return Found(
        {**runs, **{name: [of_one] for name, of_one in asked.items()}},
        (
            Target("view_start_s", max(of_one["start, s"] for (of_one,) in runs.values()), most=START_S_MAX),
            Target("view_look_up_ms", max(of_one["warm p50, ms"] for of_one in figures), most=LOOK_UP_MS_MAX),
            Target("view_look_up_cold_ms", max(of_one["cold p50, ms"] for of_one in figures), most=LOOK_UP_MS_MAX),
        ),
    )


def run(options: Options) -> Found:
    return run_with([QUICK] if options.quick else [MANY_SUBMISSIONS, MANY_OBJECTS])


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks.__main__ import show  # which imports this module

    parser = argparse.ArgumentParser(prog="python -m benchmarks.view", description=__doc__)
    parser.add_argument("--objects", type=int, default=MANY_OBJECTS.objects, help="%(default)s")
    parser.add_argument(
        "--submissions", type=int, default=MANY_OBJECTS.submissions, help="of each object (%(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="ask the index that the last call built with these options")
    args = parser.parse_args(arguments)
    found = run_with([Catalog(args.objects, args.submissions)], kept=args.keep)
    show("view", found)
    keep("view", {"repeats": 1, "quick": False, **found.document()})
    return 0 if all(target.holds for target in found.targets) else 1


if __name__ == "__main__":
    sys.exit(main())
