"""The decisions of a watcher: which files are complete, which are known, and that it is the only watcher."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from bronze.errors import Misconfigured, Unavailable
from bronze.publisher import FileFormat, files, publishing, watching
from bronze.publisher.files import Signature, open_file
from bronze.publisher.watching import SettlingFiles, WatchState, find_files


def signatures(**sizes: int) -> Mapping[str, Signature]:
    return {path: Signature(size, size) for path, size in sizes.items()}


def test_a_file_is_complete_when_it_has_not_changed_for_a_while() -> None:
    """Each change starts the time again, and so does a file that was deleted and comes back."""
    settling = SettlingFiles(2)
    assert settling.complete(signatures(a=1), 0) == []
    assert settling.complete(signatures(a=1), 1.9) == []
    assert settling.complete(signatures(a=1, b=1), 2) == ["a"]
    assert settling.complete(signatures(a=2, b=1), 3) == []
    assert settling.complete(signatures(a=2), 4) == []
    assert settling.complete(signatures(a=2, b=1), 5) == ["a"]
    assert settling.complete(signatures(a=2, b=1), 7) == ["b", "a"]  # oldest first


def test_which_files_are_found(tmp_path: Path) -> None:
    """Files of a known format: none hidden or half copied; in subdirectories only if the pattern includes them."""
    names = ["a.csv", "b.parquet", "c.csv.part", ".d.csv", "e.txt", "below/f.csv", ".bronze/g.csv", "h.csv/i.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names_found(pattern: str, chosen: FileFormat | None = None) -> set[str]:
        return {str(Path(path).relative_to(tmp_path)) for path in find_files(tmp_path, pattern, chosen)}

    assert names_found("*") == {"a.csv", "b.parquet"}
    assert names_found("*.csv") == {"a.csv"}
    assert names_found("**/*.csv") == {"a.csv", "below/f.csv", "h.csv/i.csv"}
    assert names_found("*", FileFormat.CSV) == {"a.csv", "b.parquet", "c.csv.part", "e.txt"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Neither to files nor to directories; the watched directory itself may be a link."""
    outside = tmp_path / "outside"
    watched = tmp_path / "watched"
    for directory in (outside, watched):
        directory.mkdir()
        (directory / "own.ndjson").write_text("{}")
    (watched / "file.ndjson").symlink_to(outside / "own.ndjson")
    (watched / "inside.ndjson").symlink_to(watched / "own.ndjson")
    (watched / "directory").symlink_to(outside)
    link = tmp_path / "link"
    link.symlink_to(watched)
    for pattern in ("*", "**/*", "directory/*"):
        found = find_files(link, pattern, None)
        assert list(found) == ([str(link / "own.ndjson")] if pattern != "directory/*" else [])


def test_a_state_remembers(tmp_path: Path) -> None:
    """After a restart, files are known until they change; files that were sent are also known by their content."""
    file = tmp_path / "deep" / "state.sqlite"
    old, new = Signature(1, 2), Signature(1, 5)
    with WatchState.open(file) as state:
        assert not state.is_known("a", old)
        state.mark_sent("a", old, 7, "d")
        state.mark_refused("b", old, "it is wrong")
    with WatchState.open(file) as state:
        assert state.is_known("a", old)
        assert state.is_known("b", old)
        assert not state.is_known("a", new)
        assert state.was_sent("a", "d")
        assert not state.was_sent("a", "e")
        assert not state.was_sent("b", "d")
        assert not state.was_sent("c", None)
        state.mark_unchanged("a", new)
        assert state.was_sent("a", "d")
        assert not state.is_known("a", old)


def test_a_state_remembers_any_name(tmp_path: Path) -> None:
    """Names that are not UTF-8 stay apart, also after a restart."""
    names = [os.fsdecode(name) for name in (b"caf\xe9.ndjson", b"caf\xe8.ndjson")]
    file = tmp_path / "state.sqlite"
    with WatchState.open(file) as state:
        state.mark_sent(names[0], Signature(1, 2), 7, "d")
    with WatchState.open(file) as state:
        assert [state.is_known(name, Signature(1, 2)) for name in names] == [True, False]
        assert [state.was_sent(name, "d") for name in names] == [True, False]


def test_a_state_has_one_watcher(tmp_path: Path) -> None:
    """The error of the second watcher names the process of the first."""
    file = tmp_path / "state.sqlite"
    with (
        WatchState.open(file),
        pytest.raises(Misconfigured, match=f"process {os.getpid()} already watches"),
        WatchState.open(file),
    ):
        pass
    with WatchState.open(file):
        pass


def test_an_invalid_state_file_is_an_error(tmp_path: Path) -> None:
    """A file of another kind, and a path that cannot be created, are errors that say what to do."""
    other = tmp_path / "other.sqlite"
    other.write_text("hello, this is no database" * 10)
    for file in (other, other / "below.sqlite"):
        with pytest.raises(Misconfigured, match="--state"), WatchState.open(file):
            pass


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../../b", ""])
def test_a_pattern_stays_in_the_directory(pattern: str) -> None:
    with pytest.raises(Misconfigured, match="--pattern"):
        watching.check_pattern(pattern)


def test_sending_stops_if_the_file_changes(tmp_path: Path) -> None:
    """The content that is sent has to be the content that the keys were computed from."""
    file = tmp_path / "a.ndjson"
    file.write_text("{}\n")
    with open_file(str(file)) as opened:
        opened.check()
        file.write_text("{}\n{}\n")
        with pytest.raises(Unavailable, match="changed while it was being sent"):
            opened.check()


def test_keys(tmp_path: Path) -> None:
    """A key depends on path, content, publish run and classification, but not on the spelling of the path."""
    file = tmp_path / "a.ndjson"

    def key(path: Path, run: str = "", classification_id: str | None = None) -> str:
        with open_file(str(path)) as opened:
            return files.key_prefix(opened, run, classification_id)

    file.write_text("{}\n")
    first = key(file)
    assert key(tmp_path / "." / "a.ndjson") == first
    assert len({first, key(file, "r"), key(file, "", "r"), key(file.rename(tmp_path / "b.ndjson"))}) == 4
    file.write_text("{ }\n")
    assert key(file) != first


class Waits:
    """A simulated clock, which a wait moves forward."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stop = False

    def clock(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> bool:
        self.now_s += timeout_s
        return self.stop


def test_a_rate_limit_is_kept() -> None:
    """The limit is for all records together, a pause does not allow a burst afterwards, and a stop ends the wait."""
    time = Waits()
    limit = publishing.RateLimit(100, time.wait, time.clock)
    start_times = []
    for _ in range(3):
        limit.acquire(50)
        start_times.append(time.now_s)
    assert start_times == [0, 0.5, 1.0]
    time.now_s = 10
    limit.acquire(50)
    limit.acquire(50)
    assert time.now_s == 10.5
    time.stop = True
    with pytest.raises(KeyboardInterrupt):
        limit.acquire(1)
    publishing.RateLimit(None, time.wait, time.clock).acquire(10**9)
    assert time.now_s < 12
