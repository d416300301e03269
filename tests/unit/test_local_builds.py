import importlib.resources
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

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


LISTING = """
otelcol: go1.27.3
	path	go.opentelemetry.io/collector/cmd/builder
	mod	go.opentelemetry.io/collector/cmd/builder	(devel)
	dep	a.example/kept	v1.0.0	h1:kept=
	dep	a.example/replaced	v1.0.0
	=>	a.example/fork	v1.1.0	h1:fork=
	build	-trimpath=true
"""


@pytest.fixture
def go_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `go version -m` answers here is LISTING; the file is the go.sum that it is compared with."""
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\ncat <<'END'{LISTING}END\n")
    go.chmod(0o755)
    monkeypatch.setattr(builds, "go_binaries", lambda: tmp_path)
    monkeypatch.setattr(builds, "REPOSITORY", tmp_path)
    monkeypatch.setattr(builds, "GO_SUM", tmp_path / "go.sum")
    return tmp_path / "go.sum"


def test_pinned_modules_are_accepted(go_says: Path) -> None:
    """A program is run if go.sum names each of its modules, replaced ones as what replaces them."""
    go_says.write_text("a.example/fork v1.1.0 h1:fork=\na.example/kept v1.0.0 h1:kept=\n")
    builds.check_modules(Path("otelcol"))


@pytest.mark.parametrize(
    "pinned", ["a.example/kept v1.0.0 h1:other=", "a.example/kept v1.0.1 h1:kept=", "a.example/another v1.0.0 h1:kept="]
)
def test_changed_module_is_not_run(go_says: Path, pinned: str) -> None:
    """Another content, version or name of a module is an error that names it."""
    go_says.write_text(f"a.example/fork v1.1.0 h1:fork=\n{pinned}\n")
    with pytest.raises(LocalError, match=r"make lock(.|\n)*\na\.example/kept v1\.0\.0 h1:kept=$"):
        builds.check_modules(Path("otelcol"))


def test_every_component_of_the_collector_is_pinned() -> None:
    """Whoever changes builder.yaml renews go.sum with it."""
    pinned = {line.rpartition(" ")[0] for line in builds.GO_SUM.read_text().splitlines()}
    recipe = yaml.safe_load(builds.BUILDER.read_text())
    components = {part["gomod"] for kind, parts in recipe.items() if kind != "dist" for part in parts}
    assert components <= pinned
    for module, version in {
        "github.com/prometheus/prometheus": builds.PROMETHEUS_VERSION,
        "go.etcd.io/bbolt": builds.BBOLT_VERSION,
        "github.com/CycloneDX/cyclonedx-gomod": builds.CYCLONEDX_GOMOD_VERSION,
        "golang.org/x/vuln": builds.GOVULNCHECK_VERSION,
    }.items():
        assert f"{module} {version}" in pinned
