"""What a watcher decides: which files are complete, which are known, and that it is alone."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from bronze.errors import Misconfigured, Unavailable
from bronze.publisher import FileFormat, files, publishing, watching
from bronze.publisher.files import Signature, open_file
from bronze.publisher.watching import SettlingFiles, WatchState, look


def found(**sizes: int) -> Mapping[str, Signature]:
    return {path: Signature(size, size) for path, size in sizes.items()}


def test_a_file_is_complete_once_it_rests() -> None:
    """It has to be seen unchanged for so long; each change begins anew, and so does a file that comes back."""
    settling = SettlingFiles(2)
    assert settling.complete(found(a=1), 0) == []
    assert settling.complete(found(a=1), 1.9) == []
    assert settling.complete(found(a=1, b=1), 2) == ["a"]
    assert settling.complete(found(a=2, b=1), 3) == []
    assert settling.complete(found(a=2), 4) == []
    assert settling.complete(found(a=2, b=1), 5) == ["a"]
    assert settling.complete(found(a=2, b=1), 7) == ["b", "a"]  # the oldest first


def test_what_is_looked_at(tmp_path: Path) -> None:
    """Files whose format is known; nothing hidden, half copied, or below a directory unless the pattern says so."""
    names = ["a.csv", "b.parquet", "c.csv.part", ".d.csv", "e.txt", "below/f.csv", ".bronze/g.csv", "h.csv/i.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def seen(pattern: str, chosen: FileFormat | None = None) -> set[str]:
        return {str(Path(path).relative_to(tmp_path)) for path in look(tmp_path, pattern, chosen)}

    assert seen("*") == {"a.csv", "b.parquet"}
    assert seen("*.csv") == {"a.csv"}
    assert seen("**/*.csv") == {"a.csv", "below/f.csv", "h.csv/i.csv"}
    assert seen("*", FileFormat.CSV) == {"a.csv", "b.parquet", "c.csv.part", "e.txt"}


def test_a_state_remembers(tmp_path: Path) -> None:
    """What was noted is known at the next start, until the file changes; what was sent, by its content too."""
    file = tmp_path / "deep" / "state.sqlite"
    old, new = Signature(1, 2), Signature(1, 5)
    with WatchState.opened(file) as state:
        assert not state.knows("a", old)
        state.note("a", old, 7, "d")
        state.set_aside("b", old, "it is wrong")
    with WatchState.opened(file) as state:
        assert state.knows("a", old)
        assert state.knows("b", old)
        assert not state.knows("a", new)
        assert state.sent("a", "d")
        assert not state.sent("a", "e")
        assert not state.sent("b", "d")
        assert not state.sent("c", None)
        state.touched("a", new)
        assert state.sent("a", "d")
        assert not state.knows("a", old)


def test_a_state_has_one_watcher(tmp_path: Path) -> None:
    """The second is told which process has it."""
    file = tmp_path / "state.sqlite"
    with (
        WatchState.opened(file),
        pytest.raises(Misconfigured, match=f"process {os.getpid()} watches already"),
        WatchState.opened(file),
    ):
        pass
    with WatchState.opened(file):
        pass


def test_what_cannot_be_a_state(tmp_path: Path) -> None:
    """Another file, and a place where none can be, are said with what to do."""
    other = tmp_path / "other.sqlite"
    other.write_text("hello, this is no database" * 10)
    for file in (other, other / "below.sqlite"):
        with pytest.raises(Misconfigured, match="--state"), WatchState.opened(file):
            pass


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../../b", ""])
def test_a_pattern_stays_in_the_directory(pattern: str) -> None:
    with pytest.raises(Misconfigured, match="--pattern"):
        watching._check(pattern)


def test_a_file_that_changes_is_not_sent_on(tmp_path: Path) -> None:
    """What is read has to be what the keys were made of."""
    file = tmp_path / "a.ndjson"
    file.write_text("{}\n")
    with open_file(str(file)) as one:
        one.check()
        file.write_text("{}\n{}\n")
        with pytest.raises(Unavailable, match="changed while it was sent"):
            one.check()


def test_keys(tmp_path: Path) -> None:
    """A key is a function of path, content, run and classification, however the path is written."""
    file = tmp_path / "a.ndjson"

    def key(path: Path, run: str = "", classification_id: str | None = None) -> str:
        with open_file(str(path)) as one:
            return files.key(one, run, classification_id)

    file.write_text("{}\n")
    first = key(file)
    assert key(tmp_path / "." / "a.ndjson") == first
    assert len({first, key(file, "r"), key(file, "", "r"), key(file.rename(tmp_path / "b.ndjson"))}) == 4
    file.write_text("{ }\n")
    assert key(file) != first


class Waits:
    """A clock that waits itself."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stop = False

    def clock(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> bool:
        self.now_s += timeout_s
        return self.stop


def test_a_pace_is_kept() -> None:
    """So many records a second over all; what comes late does not hurry afterwards; a stop does not wait on."""
    time = Waits()
    pace = publishing.RateLimit(100, time.wait, time.clock)
    begun = []
    for _ in range(3):
        pace.take(50)
        begun.append(time.now_s)
    assert begun == [0, 0.5, 1.0]
    time.now_s = 10
    pace.take(50)
    pace.take(50)
    assert time.now_s == 10.5
    time.stop = True
    with pytest.raises(KeyboardInterrupt):
        pace.take(1)
    publishing.RateLimit(None, time.wait, time.clock).take(10**9)
    assert time.now_s < 12
