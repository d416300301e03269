"""Watching: sends each file that arrives in a directory once, even if the watcher is killed in between.

A state file in the directory records which files were sent. A watcher that dies after the last answer and before it
records the file sends the file again after its restart, with the same keys, and the API accepts nothing twice.
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
from bronze.plurals import counted
from bronze.publisher.files import Signature
from bronze.publisher.formats import FileFormat, display_name, format_of
from bronze.publisher.plan import Plan
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import PublishRun, for_each_file, open_run
from bronze.publisher.stopping import Stop
from bronze.settings import Settings
from bronze.telemetry import Telemetry

PATTERN = "*"
SETTLE_S = 2.0
POLL_S_MAX = 1.0
#: How often it is tried to read a file that could not be read.
UNREADABLE_RETRY_S = 5.0
#: The directory of the state in the watched directory; it is hidden, so no pattern finds it.
STATE_DIRECTORY = ".bronze"

#: Statuses of refusals that concern the records of one file. Other refusals would apply to every file.
_RECORD_ERROR_STATUSES = frozenset({400, 409, 413, 422})

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

Signatures = Mapping[str, Signature]


def find_files(directory: Path, pattern: str, chosen: FileFormat | None) -> Signatures:
    """The files in a directory whose format is known, by path.

    Ignores hidden files, files in hidden directories and files of unknown format: a file that is being copied often has
    such a name. Ignores links, too: whoever may write to the directory could have any file of the machine sent. Raises
    `OSError` if the directory does not exist.
    """
    os.scandir(directory).close()  # `glob` finds nothing in a directory that cannot be read
    real = directory.resolve()
    signatures = {}
    for path in directory.glob(pattern):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if hidden or format_of(path.name, chosen) is None:
            continue
        try:
            if path.resolve() != real / path.relative_to(directory):
                continue  # it, or a directory in its path, is a link
            status = path.stat()
        except OSError:  # deleted meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            signatures[str(path)] = Signature.of(status)
    return signatures


class SettlingFiles:
    """Decides which files are complete: those that have not changed for `settle_s` seconds of this process' clock."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._unchanged_since: dict[str, tuple[Signature, float]] = {}

    def complete(self, signatures: Signatures, now_s: float) -> list[str]:
        """The files that are complete now, the oldest first. Call it regularly, with all files."""
        before = self._unchanged_since
        self._unchanged_since = {
            path: known if (known := before.get(path)) and known[0] == signature else (signature, now_s)
            for path, signature in signatures.items()
        }
        settled = [path for path, (_, since_s) in self._unchanged_since.items() if now_s - since_s >= self._settle_s]
        return sorted(settled, key=lambda path: (signatures[path].mtime_ns, path))


class WatchState:
    """The durable record of which files were sent or refused. Only one watcher at a time can use a state file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        rows = connection.execute("SELECT path, size, mtime_ns FROM files")
        self._known = {os.fsdecode(path): Signature(size, mtime_ns) for path, size, mtime_ns in rows}

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Self]:
        """The state in a file, which is created if it does not exist. Raises `Misconfigured` if another watcher uses
        it, or if it cannot be created or read.
        """
        with ExitStack() as stack:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                _lock_state(stack.enter_context(file.with_suffix(".lock").open("a+")), file)
                connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
                stack.callback(connection.close)
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute(_SCHEMA)
                state = cls(connection)
            except sqlite3.Error as error:
                raise Misconfigured(
                    f"{file} is not a valid watcher state file ({error}): use --state to give another file"
                ) from error
            except OSError as error:
                raise Misconfigured(
                    f"the watcher's state file cannot be opened ({error}): use --state to give another file"
                ) from error
            yield state

    def is_known(self, path: str, signature: Signature) -> bool:
        """Whether a file was sent or refused, and has not changed since."""
        return self._known.get(path) == signature

    def was_sent(self, path: str, digest: str | None) -> bool:
        """Whether exactly this content was sent from this path, even if the file's time has changed."""
        query = "SELECT 1 FROM files WHERE path = ? AND digest = ? AND refused IS NULL"
        return bool(self._execute(query, _stored(path), digest))

    def mark_sent(self, path: str, signature: Signature, records: int, digest: str | None) -> None:
        """Records that a file was sent."""
        self._record(path, signature, records, digest, None)

    def mark_refused(self, path: str, signature: Signature, reason: str) -> None:
        """Records that a file was refused."""
        self._record(path, signature, 0, None, reason)

    def mark_unchanged(self, path: str, signature: Signature) -> None:
        """Records the new time of a file that still has the content that was sent."""
        self._execute("UPDATE files SET size = ?, mtime_ns = ? WHERE path = ?", *signature, _stored(path))
        self._known[path] = signature

    def _record(self, path: str, signature: Signature, *values: object) -> None:
        insert = "REPLACE INTO files (path, size, mtime_ns, records, digest, refused) VALUES (?, ?, ?, ?, ?, ?)"
        self._execute(insert, _stored(path), *signature, *values)
        self._known[path] = signature

    def _execute(self, statement: str, *values: object) -> list[object]:
        """Raises `Misconfigured` if the state cannot be read or written."""
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise Misconfigured(f"the watcher's state file cannot be read or written: {error}") from error


def _stored(path: str) -> str | bytes:
    """A path as SQLite stores it: as bytes if it is not UTF-8."""
    name = os.fsencode(path)
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


def _lock_state(lock: TextIO, file: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise Misconfigured(
            f"process {lock.read().strip() or 'unknown'} already watches with the state file {file}. Stop it, or watch "
            "another directory; or use --state to give another state file, if this watcher sends other files"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()


class Watcher:
    """Polls a directory, and sends the files in it that are new and complete."""

    def __init__(
        self, run: PublishRun, state: WatchState, directory: Path, *, pattern: str, settle_s: float, stop: Stop
    ) -> None:
        self._run = run
        self._state = state
        self._directory = directory
        self._pattern = pattern
        self._settling = SettlingFiles(settle_s)
        self._stop = stop
        #: when files that could not be read are tried again
        self._unreadable: dict[str, float] = {}
        self._poll_s = min(POLL_S_MAX, max(settle_s / 2, 0.05))

    def watch(self, clock: Callable[[], float]) -> None:
        """Runs until a stop is requested. Raises errors that would apply to every file."""
        while not self._stop.requested:
            now_s = clock()
            signatures = {
                path: signature
                for path, signature in find_files(self._directory, self._pattern, self._run.plan.format).items()
                if not self._state.is_known(self._name(path), signature) and self._unreadable.get(path, now_s) <= now_s
            }
            complete = self._settling.complete(signatures, now_s)
            send = partial(self._send, signatures, clock)
            for_each_file(complete, send, parallel=self._run.plan.parallel, stop=self._stop)
            if self._stop.wait(self._poll_s):
                return

    def _name(self, path: str) -> str:
        """A file's path in the state: relative, since the directory may be moved."""
        return str(Path(path).relative_to(self._directory))

    def _send(self, signatures: Signatures, clock: Callable[[], float], path: str) -> None:
        name, signature = self._name(path), signatures[path]
        try:
            records, file = self._run.send(path, is_known=lambda file: self._state.was_sent(name, file.digest))
        except Refused as error:
            if error.status not in _RECORD_ERROR_STATUSES:
                raise
            _log.error("the file was refused and will be sent again when it changes: %s", error)
            self._run.summary.refused[display_name(path)] = str(error)
            self._state.mark_refused(name, signature, str(error))
        except Unavailable as error:
            if self._stop.requested:
                raise
            _log.warning("%s; the file will be tried again", error)
        except FileNotFoundError:
            self._unreadable.pop(path, None)
            self._run.summary.refused.pop(display_name(path), None)
            _log.warning("%s disappeared before it was sent", display_name(path))
        except OSError as error:
            if path not in self._unreadable:
                _log.error("%s; the file will be tried again every %g s", error, UNREADABLE_RETRY_S)
            self._unreadable[path] = clock() + UNREADABLE_RETRY_S
            self._run.summary.refused[display_name(path)] = str(error)
        else:
            self._unreadable.pop(path, None)
            self._run.summary.refused.pop(display_name(path), None)
            if records is None:
                self._state.mark_unchanged(name, file.signature or signature)
            else:
                _log.info("%s was sent: %s", display_name(path), counted(records, "record"))
                self._state.mark_sent(name, file.signature or signature, records, file.digest)


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
    """Sends each file that arrives as soon as it is complete, until a stop is requested.

    Goes on with the other files if a file is refused. The summary's `error` has the error that ended the watcher, if it
    was not a stop. Raises `Misconfigured` if the directory, the pattern or the state file cannot be used.
    """
    check_pattern(pattern)
    file = state or directory / STATE_DIRECTORY / f"{PurePath(plan.source).name}.sqlite"
    with (
        WatchState.open(file) as watch_state,
        open_run(settings, telemetry, plan, stop=stop, report=report, progress=progress, clock=clock) as run,
    ):
        watcher = Watcher(run, watch_state, directory, pattern=pattern, settle_s=settle_s, stop=stop)
        try:
            watcher.watch(clock)
        except (BronzeError, OSError) as error:
            return run.end(None if stop.requested else str(error))
        except KeyboardInterrupt:
            pass
        return run.end()


def check_pattern(pattern: str) -> None:
    """Raises `Misconfigured` if a pattern leads out of its directory."""
    path = PurePath(pattern)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Misconfigured(
            f"--pattern {pattern!r} is not a pattern within the directory: use for example '*.csv' or '**/*.csv'"
        )
