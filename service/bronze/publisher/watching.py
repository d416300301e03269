"""Watching: each file that arrives in a directory is sent once, whatever becomes of the watcher meanwhile.

What was sent is remembered beside the files. A watcher that dies between the last answer and its note of it sends the
file again when it is back, under the same keys, and the API takes nothing twice.
"""

import fcntl
import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Self, TextIO

from bronze.errors import BronzeError, Misconfigured, Refused, Unavailable
from bronze.publisher.files import Signature
from bronze.publisher.formats import FileFormat, format_of
from bronze.publisher.plan import Plan
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import PublishRun, each, running
from bronze.publisher.stopping import Stop
from bronze.settings import Settings
from bronze.telemetry import Telemetry

PATTERN = "*"
SETTLE_S = 2.0
POLL_S_MAX = 1.0
#: In the watched directory; a name that no pattern finds.
STATE = ".bronze"

#: Refusals that are about a file's records; any other one every file would get.
_OF_RECORDS = frozenset({400, 409, 413, 422})

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest TEXT,
    records INTEGER NOT NULL,
    refused TEXT,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""

_log = logging.getLogger(__name__)

FilesFound = Mapping[str, Signature]


def look(directory: Path, pattern: str, chosen: FileFormat | None) -> FilesFound:
    """The files that are there and that we can read, by path. Hidden ones are left alone, and so is what stands below
    a hidden directory or has no format: a file that is being copied often has such a name. Raises `OSError` if the
    directory is gone.
    """
    directory.stat()
    found = {}
    for path in directory.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if hidden or format_of(path.name, chosen) is None:
            continue
        try:
            told = path.stat()
        except OSError:  # gone again
            continue
        if stat.S_ISREG(told.st_mode):
            found[str(path)] = Signature.of(told)
    return found


class SettlingFiles:
    """Which files are complete: those that have not changed for so long, by our own clock."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[str, tuple[Signature, float]] = {}

    def complete(self, found: FilesFound, now_s: float) -> list[str]:
        """Those of the files that are complete now, the oldest first. Asked again and again, with all files."""
        self._since = {
            path: known if (known := self._since.get(path)) and known[0] == signature else (signature, now_s)
            for path, signature in found.items()
        }
        settled = [path for path, (_, since_s) in self._since.items() if now_s - since_s >= self._settle_s]
        return sorted(settled, key=lambda path: (found[path].mtime_ns, path))


class WatchState:
    """What became of each file, on disk before it is believed. One watcher at a time has it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._using = threading.Lock()
        rows = connection.execute("SELECT path, size, mtime_ns FROM files")
        self._known = {path: Signature(size, mtime_ns) for path, size, mtime_ns in rows}

    @classmethod
    @contextmanager
    def opened(cls, file: Path) -> Iterator[Self]:
        """The state in a file, made if there is none. Raises `Misconfigured` if another watcher has it, or if there
        can be none.
        """
        with ExitStack() as stack:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                _take(stack.enter_context(file.with_suffix(".lock").open("a+")), file)
                connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
                stack.callback(connection.close)
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute(_SCHEMA)
                state = cls(connection)
            except sqlite3.Error as error:
                raise Misconfigured(f"{file}: {error}: no watcher's state. --state names another file") from error
            except OSError as error:
                raise Misconfigured(f"{error}: a watcher needs a place for its state. --state names one") from error
            yield state

    def knows(self, path: str, signature: Signature) -> bool:
        """Whether a file was sent, or set aside, and has not changed since."""
        return self._known.get(path) == signature

    def sent(self, path: str, digest: str | None) -> bool:
        """Whether this very content was sent from there, whatever the file's time says."""
        query = "SELECT 1 FROM files WHERE path = ? AND digest = ? AND refused IS NULL"
        return bool(self._execute(query, path, digest))

    def note(self, path: str, signature: Signature, records: int, digest: str | None) -> None:
        """Remember that a file was sent."""
        self._note(path, signature, records, digest, None)

    def set_aside(self, path: str, signature: Signature, reason: str) -> None:
        """Remember that a file was refused."""
        self._note(path, signature, 0, None, reason)

    def touched(self, path: str, signature: Signature) -> None:
        """Remember that a file has another time, and the content that was sent."""
        self._execute("UPDATE files SET size = ?, mtime_ns = ? WHERE path = ?", *signature, path)
        self._known[path] = signature

    def _note(self, path: str, signature: Signature, *facts: object) -> None:
        insert = "REPLACE INTO files (path, size, mtime_ns, records, digest, refused) VALUES (?, ?, ?, ?, ?, ?)"
        self._execute(insert, path, *signature, *facts)
        self._known[path] = signature

    def _execute(self, statement: str, *values: object) -> list[object]:
        """Raises `Misconfigured` if the state cannot be kept."""
        with self._using:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise Misconfigured(f"what becomes of files cannot be remembered: {error}") from error


def _take(lock: TextIO, file: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise Misconfigured(
            f"process {lock.read().strip() or 'unknown'} watches already, by {file}. Stop it, or watch another "
            "directory; --state names another state for another part of the files"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()


class Watcher:
    """Looks at a directory again and again, and sends what is complete and new there."""

    def __init__(
        self, run: PublishRun, state: WatchState, directory: Path, *, pattern: str, settle_s: float, stop: Stop
    ) -> None:
        self._run = run
        self._state = state
        self._directory = directory
        self._pattern = pattern
        self._settling = SettlingFiles(settle_s)
        self._stop = stop
        self._unread: dict[str, Signature] = {}
        self._poll_s = min(POLL_S_MAX, max(settle_s / 2, 0.05))

    def watch(self, clock: Callable[[], float]) -> None:
        """Goes on until it is to stop. Raises what every file would meet."""
        while not self._stop.wanted:
            found = {
                path: signature
                for path, signature in look(self._directory, self._pattern, self._run.plan.format).items()
                if not self._state.knows(self._name(path), signature) and self._unread.get(path) != signature
            }
            due = self._settling.complete(found, clock())
            work = partial(self._send, found)
            each(due, work, parallel=self._run.plan.parallel, stop=self._stop)
            if self._stop.wait(self._poll_s):
                return

    def _name(self, path: str) -> str:
        """What the state calls a file: it may move with its directory."""
        return str(Path(path).relative_to(self._directory))

    def _send(self, found: FilesFound, path: str) -> None:
        name, signature = self._name(path), found[path]
        try:
            records, file = self._run.send(path, known=lambda file: self._state.sent(name, file.digest))
        except Refused as error:
            if error.status not in _OF_RECORDS:
                raise
            _log.error("set aside: %s", error)
            self._run.summary.refused[path] = str(error)
            self._state.set_aside(name, signature, str(error))
        except Unavailable as error:
            if self._stop.wanted:
                raise
            _log.warning("%s; the file is tried again", error)
        except FileNotFoundError:
            _log.warning("%s is gone before it was sent", path)
        except OSError as error:
            _log.error("%s; the file is tried again once it changes", error)
            self._unread[path] = signature
        else:
            self._run.summary.refused.pop(path, None)
            if records is None:
                self._state.touched(name, file.signature or signature)
            else:
                _log.info("%s was sent: %d records", path, records)
                self._state.note(name, file.signature or signature, records, file.digest)


def watch(
    settings: Settings,
    telemetry: Telemetry,
    plan: Plan,
    directory: Path,
    *,
    stop: Stop,
    pattern: str = PATTERN,
    settle_s: float = SETTLE_S,
    state: Path | None = None,
    report: TextIO | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Sends each file that arrives, once it is complete, until it is to stop.

    A file that is refused is set aside, and the others go on. The summary's `error` says what ended it but the wish to
    stop. Raises `Misconfigured` for what cannot be watched.
    """
    _check(pattern)
    file = state or directory / STATE / f"{PurePath(plan.source).name}.sqlite"
    with (
        WatchState.opened(file) as known,
        running(settings, telemetry, plan, stop=stop, report=report, progress=progress, clock=clock) as run,
    ):
        watcher = Watcher(run, known, directory, pattern=pattern, settle_s=settle_s, stop=stop)
        try:
            watcher.watch(clock)
        except (BronzeError, OSError) as error:
            return run.end(None if stop.wanted else str(error))
        except KeyboardInterrupt:
            pass
        return run.end()


def _check(pattern: str) -> None:
    path = PurePath(pattern)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Misconfigured(f"--pattern {pattern!r}: a pattern within the directory, such as '*.csv' or '**/*.csv'")
