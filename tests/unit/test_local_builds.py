import importlib.resources
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local import builds
from local.builds import Build, ensure
from local.programs import LocalError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bronze"


def test_built_once_by_two(cache: Path) -> None:
    """Two runs at once build once, and both get the finished folder."""
    begun = threading.Event()
    made = []

    def make(result: Path, _log: Path) -> None:
        made.append(result)
        begun.set()
        (result / "program").write_text("whole")

    def other(result: Path, log: Path) -> None:
        assert begun.is_set()
        make(result, log)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda m: ensure(Build("it", "it-1", m), say=lambda _: None), (make, make)))
    assert found == [cache / "it-1"] * 2
    assert len(made) == 1
    assert (cache / "it-1" / "program").read_text() == "whole"
    assert ensure(Build("it", "it-1", other)) == cache / "it-1"
    assert len(made) == 1


def test_another_version_is_built_beside_it(cache: Path) -> None:
    """A new key is a new build; the old one stays."""

    def make(result: Path, _log: Path) -> None:
        (result / "v").write_text(result.name)

    for version in ("1", "2"):
        ensure(Build("it", f"it-{version}", make), say=lambda _: None)
    assert [(cache / f"it-{v}" / "v").read_text() for v in ("1", "2")] == ["it-1", "it-2"]


def test_failed_build_leaves_nothing(cache: Path) -> None:
    """A build that fails halfway is not taken for a finished one."""

    def make(result: Path, _log: Path) -> None:
        (result / "half").write_text("")
        raise LocalError("no")

    with pytest.raises(LocalError):
        ensure(Build("it", "it-1", make), say=lambda _: None)
    assert sorted(path.name for path in cache.iterdir()) == ["it-1.lock", "logs"]


def test_failed_go_shows_the_log(tmp_path: Path) -> None:
    """A Go command that fails is reported with what it said."""
    log = tmp_path / "go.log"
    log.write_text("")
    with pytest.raises(LocalError, match=r"go no-such-command(.|\n)*unknown command"):
        builds._go(log, "no-such-command")


def test_go_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's Go settings change nothing: the wheel's toolchain builds, and never fetches another."""
    monkeypatch.setenv("GOROOT", "/nowhere")
    monkeypatch.setenv("GOFLAGS", "-broken")
    monkeypatch.setenv("GOTOOLCHAIN", "go1.1")
    log = tmp_path / "go.log"
    builds._go(log, "env", "GOROOT", "GOFLAGS", "GOTOOLCHAIN")
    root, *rest = log.read_text().splitlines()
    assert rest == ["-buildvcs=false", "local"]
    assert Path(root) == Path(str(importlib.resources.files("go")))


def test_recipe_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another component in the collector's recipe is another build."""
    before = builds._collector().key
    changed = tmp_path / "builder.yaml"
    changed.write_bytes(builds.BUILDER.read_bytes() + b"# changed\n")
    monkeypatch.setattr(builds, "BUILDER", changed)
    assert builds._collector().key != before
