import importlib.resources
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from local import builds
from local.builds import Build, Building, Built, ensure
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


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """A build of `servers_are` ends when it is set."""
    event = threading.Event()
    yield event
    event.set()


def servers_are(monkeypatch: pytest.MonkeyPatch, *makes: Callable[[Path, Path], None]) -> None:
    """The servers that have to be built: "server 1" and so on."""
    monkeypatch.setattr(
        builds, "_servers", lambda: tuple(Build(f"server {n}", f"s-{n}", make) for n, make in enumerate(makes, start=1))
    )


def test_a_building_says_what_remains(monkeypatch: pytest.MonkeyPatch, cache: Path, go_on: threading.Event) -> None:
    """At once what has to be built, and meanwhile what is left; what is in the cache is done."""
    (cache / "s-1").mkdir(parents=True)

    def nothing(_result: Path, _log: Path) -> None:
        pass

    def slow(_result: Path, _log: Path) -> None:
        go_on.wait()

    servers_are(monkeypatch, nothing, nothing, slow, nothing)
    monkeypatch.setattr(builds, "PROGRESS_S", 0.05)
    monkeypatch.setattr(builds, "planned", lambda: Built(*[cache] * 3))
    remains = "server 3 (done: 3 of 4)"
    said = []

    def say(text: str) -> None:
        said.append(text)
        if text == f"being built: {remains}":
            go_on.set()

    with Building(say) as building:
        assert "server 1" not in building.unfinished
        building.finish()
    assert f"being built: {remains}" in said
    assert building.unfinished == []


def test_a_failed_build_stops_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its error is reported at once. A program that is being built ends, and so does a wait for another command."""
    begun = threading.Event()

    def compiling(_result: Path, log: Path) -> None:
        begun.set()
        builds._run(log, Path("sleep"), "60")

    def failing(_result: Path, _log: Path) -> None:
        assert begun.wait(10)
        raise LocalError("no module")

    servers_are(monkeypatch, compiling, failing)
    began = time.monotonic()
    with pytest.raises(LocalError, match="no module"), Building(lambda _: None) as building:
        building.finish()
    assert time.monotonic() - began < 30
    assert not list((tmp_path / "bronze").glob("s-?"))


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


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "otelcol/main.go"])
def test_the_module_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Another version, checksum or component is another build."""
    before = builds._servers()[0].key
    changed = shutil.copytree(builds.GO_MODULE, tmp_path / "go")
    monkeypatch.setattr(builds, "GO_MODULE", changed)
    assert builds._servers()[0].key == before
    with (changed / file).open("a") as text:
        text.write("\n")
    assert builds._servers()[0].key != before


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go module with a program, and a module `a.example/other` that its program is compiled from."""
    folder, proxy = tmp_path / "module", tmp_path / "proxy" / "a.example" / "other" / "@v"
    folder.mkdir()
    proxy.mkdir(parents=True)
    (folder / "go.mod").write_text("module it\n\nrequire a.example/other v1.0.0\n")
    (folder / "main.go").write_text(
        'package main\n\nimport "a.example/other"\n\nfunc main() {\n\tprintln(other.Name)\n}\n'
    )
    (proxy / "v1.0.0.mod").write_text("module a.example/other\n")
    (proxy / "v1.0.0.info").write_text('{"Version": "v1.0.0"}')
    with zipfile.ZipFile(proxy / "v1.0.0.zip", "w") as content:
        content.writestr("a.example/other@v1.0.0/go.mod", "module a.example/other\n")
        content.writestr("a.example/other@v1.0.0/other.go", 'package other\n\nconst Name = "other"\n')
    monkeypatch.setattr(builds, "GO_MODULE", folder)
    monkeypatch.setattr(builds, "HELM_MODULE", folder)
    monkeypatch.setattr(builds, "FAULTS_MODULE", folder)
    monkeypatch.setenv("GOPROXY", (tmp_path / "proxy").as_uri())
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("GOFLAGS", "-modcacherw")
    monkeypatch.setenv("GONOSUMDB", "*")
    return folder


def test_changed_module_is_not_compiled(module: Path, tmp_path: Path) -> None:
    """What comes from the module proxy under a pinned version is an error, unless it has the pinned checksum."""
    builds.pin_modules()
    pinned = module / "go.sum"
    assert "a.example/other v1.0.0 h1:" in pinned.read_text()
    pinned.write_text(re.sub(r"(?<=v1.0.0 h1:).", "*", pinned.read_text()))
    result, log = tmp_path / "result", tmp_path / "log"
    with pytest.raises(LocalError, match="checksum mismatch"):
        builds._go_build("it", "it", ".").make(result, log)
    assert not result.exists()


def parts() -> Iterator[tuple[str, str]]:
    """The components that the collector's files use, as kind and type."""
    for file in (builds.REPOSITORY / "otel-collector").rglob("*.yaml"):
        document = yaml.safe_load(file.read_text())
        for kind in ("receivers", "processors", "connectors", "exporters", "extensions"):
            for name in document.get(kind) or ():
                yield kind.removesuffix("s"), name.partition("/")[0].replace("_", "")


def test_the_collector_has_the_components_that_its_files_use() -> None:
    """And no others: each takes time to build."""
    source = (builds.GO_MODULE / "otelcol" / "main.go").read_text()
    compiled = re.findall(r'"[^"]+/([a-z]+)(receiver|processor|connector|exporter|extension)"', source)
    storage = {("extension", "filestorage")}  # its package has no such ending
    assert {(kind, name) for name, kind in compiled} | storage == {
        (kind, {"otlpgrpc": "otlp"}.get(name, name)) for kind, name in parts()
    }


def test_components_have_one_version() -> None:
    """Mixed versions build without an error, and then fail silently."""
    source = (builds.GO_MODULE / "otelcol" / "main.go").read_text()
    kinds = "receiver|processor|connector|exporter|extension"
    components = re.findall(rf'"([^"]+/(?:[a-z]+(?:{kinds})|filestorage|otelcol))"', source)
    assert {builds.version(component) for component in components} == {builds.version(builds.COLLECTOR)}
