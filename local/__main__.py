"""The commands behind `make`: `python -m local up | status | logs | down | demo | check`."""

import argparse
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local import checks, evidence, samples, servers
from local.audit import audit as audit_all
from local.builds import REPOSITORY, Building, Built, build_all, pin_modules, planned
from local.components import write_sbom
from local.exporters import Exporters
from local.images import pin_images
from local.programs import LOOPBACK, UMASK, LocalError, NotReady, Program, check_ports, environment, log_tail
from local.queues import unsent
from local.settings import FLEET_VARIABLE, fleet, ignored, nats_servers, settings, sources_path, workers
from local.stack import Ports, Stack, collector_state
from local.supervision import Supervisor
from local.watch import leave_nothing

STATE = REPOSITORY / ".local"
UP = STATE / "up"
DEMO = STATE / "demo"
#: Of the log of a program that does not work.
STATUS_LINES = 5
#: Errors of a disk that is full, or not writable.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
#: Creates an API key for the user of the shell, and lets commands send it.
NEW_KEY = "export BRONZE_API_KEY=$(bronze keys create me --scope 'ingest:*' --scope 'read:*' --yes)"
RUNS_ON = "What was started runs on: `make status` shows it, `make up` completes it, `make down` stops it"

_console = Console(highlight=False)
_began = time.monotonic()


def say(text: str) -> None:
    """Prints a step of the command, with the seconds since the command began."""
    _console.print(f"[dim]{time.monotonic() - _began:5.1f} s[/]  {escape(text)}", soft_wrap=True)


def up(sample: str | None = None) -> int:
    """Starts everything in the background on its usual ports, sends the sample and shows the result.

    If the system is up, it keeps running: programs whose settings were changed are restarted, and if the file of
    sources was edited, API and consumer take it. Settings that would not work change nothing.
    """
    supervisor = Supervisor(UP)
    with _alone(UP):
        undeclared = samples.undeclared(sources_path())
        ports, simulates, processes = Ports.configured(settings()), fleet() and not undeclared, workers()
        if supervisor.runs() and (running := Stack.load(UP)):
            if sample:
                raise LocalError(
                    "the system is up, but a sample is only sent at its start: run `make down` first, then this command"
                )
            built, exporters = prepare()
            stack = replace(
                running,
                built=built,
                exporters=exporters,
                fleet=simulates,
                workers=processes,
                nats_servers=nats_servers(),
            )
            stack.check_queue_state()
            update(supervisor, running, stack)
            for note in stack.ports.ignored(ports):
                say(f"note: {note}")
            holds = True
        else:
            files = directory_of(sample)
            chosen = configured_exporters(planned())
            stack = Stack.create(
                UP, ports, planned(), chosen, fleet=simulates, workers=processes, nats_servers=nats_servers()
            )
            check_free(stack.programs)  # before anything is built
            with Building(say) as building:
                launch(supervisor, stack, building, restarts=True)
            with _running_on():
                if undeclared:
                    start(supervisor, stack.senders)
                    holds = True
                else:
                    investigation = follow_sample(stack, supervisor, files)
                    holds = evidence.show(_console, investigation.evidence, investigation.slowest)
        with _running_on():
            supervisor.wait_steady(stack.programs)
    for note in ignored(stack.roles[0].env):
        say(f"note: {note}")
    if undeclared:
        say(f"note: no sample and no simulated fleet: {sources_path()} does not declare {', '.join(undeclared)}")
    say("the system is up: `make status` shows it, `make down` stops it")
    show_urls(stack)
    return 0 if holds else 1


def demo(sample: str | None = None) -> int:
    """As `up`, with fresh state and on free ports; stops everything at the end. Exit code 0 if all claims are true."""
    supervisor = Supervisor(DEMO)
    document = STATE / "evidence.json"
    if undeclared := samples.undeclared(sources_path()):
        raise LocalError(
            f"the demo sends the sample, and {sources_path()} does not declare {', '.join(undeclared)}: unset "
            "BRONZE_SOURCES"
        )
    with _alone(DEMO), leave_nothing():
        shutil.rmtree(DEMO, ignore_errors=True)
        document.unlink(missing_ok=True)
        files = directory_of(sample)
        stack = Stack.create(
            DEMO, Ports.free(), *prepare(), fleet=fleet(), workers=workers(), nats_servers=nats_servers()
        )
        try:
            launch(supervisor, stack, restarts=False)
            investigation = follow_sample(stack, supervisor, files)
        finally:
            if supervisor.runs():
                say("stopping everything")
                supervisor.shutdown()
    document.write_text(json.dumps(investigation.evidence.document(), indent=2) + "\n")
    holds = evidence.show(_console, investigation.evidence, investigation.slowest)
    say(
        f"{'done' if holds else 'FAILED'}; the figures are in {_relative(document)}, the logs in "
        f"{_relative(DEMO / 'logs')}"
    )
    return 0 if holds else 1


def prepare() -> tuple[Built, Exporters]:
    """Everything that a start needs: the built programs, and exporters whose configuration the programs accept."""
    built = build_all(say)
    exporters = configured_exporters(built)
    checks.check_choice(built, exporters)
    return built, exporters


def configured_exporters(built: Built) -> Exporters:
    exporters = Exporters.configured(settings(), tempo=built.tempo is not None)
    say(f"exporters: {exporters}")
    return exporters


def launch(supervisor: Supervisor, stack: Stack, building: Building | None = None, *, restarts: bool) -> None:
    """Starts the servers, then the roles that need them. If a program does not become ready, all are stopped.

    While programs are being built, what accepts and stores records starts before the rest.
    """

    def finish() -> None:
        if building:
            checks.check_choice(building.finish(), stack.exporters)
            warn_of_unsent(stack.built, stack.exporters)

    early = (*stack.stores, *stack.roles) if building and building.unfinished else ()
    if not early:
        finish()
    check_free(stack.programs)
    supervisor.launch(stack.programs, restarts=restarts)
    try:
        if early:
            start(supervisor, stack.stores)
            start(supervisor, stack.roles)
            say_ready(stack, building)
            finish()
        start(supervisor, [program for program in stack.servers if program not in early])
        start(supervisor, [program for program in stack.roles if program not in early])
    except BaseException:
        if supervisor.runs():
            say("stopping what was started; the state is kept")
            supervisor.shutdown()
        raise


def say_ready(stack: Stack, building: Building | None) -> None:
    """Says that records are accepted and stored, and what is missing yet."""
    say(f"the API accepts records at {stack.api_url}, and they are stored: README.md, Send data")
    say(
        f"being built for metrics and traces, once per version: {building}. On two cores this takes some minutes. "
        "Metrics of this time are shown later, its traces are lost"
    )


def check_free(programs: Iterable[Program]) -> None:
    """Raises `LocalError` with every port that is in use."""
    errors = []
    for program in programs:
        try:
            check_ports(program)
        except LocalError as error:
            errors.append(str(error))
    if len(errors) > 1:
        errors.append("If another checkout's system is running: `make down` there, or other ports here, in .env")
    if errors:
        raise LocalError("\n".join(errors))


def update(supervisor: Supervisor, running: Stack, stack: Stack) -> None:
    """Changes the running system to what is set now. Raises `LocalError` before any change if that would not work."""
    check_sources(stack)
    if supervisor.state(stack.stores[0].name).runs:
        try:
            stack.initialize_queue()
        except LocalError as error:
            raise LocalError(f"{error}\nNothing was changed") from error
    with _running_on():
        reconcile(supervisor, running, stack)
    for role in (*stack.roles, stack.table):
        supervisor.reload(role.name)
    warn_of_unsent(stack.built, stack.exporters)


def reconcile(supervisor: Supervisor, running: Stack, stack: Stack) -> None:
    """Changes the running programs to those of the stack.

    New programs start before others use them, removed programs stop last, and unchanged programs keep running.
    """
    programs = {program.name: program for program in stack.programs}
    ports_before = {program.name: program.ports for program in running.programs}
    differences = supervisor.reread(stack.programs, restarts=True)
    for name in differences.added | differences.changed:
        ports = {
            use: port for use, port in programs[name].ports.items() if port not in ports_before.get(name, {}).values()
        }
        check_ports(replace(programs[name], ports=ports))
    for program in stack.programs:
        if program.name in differences.changed:
            say(f"{program.name} has new settings: stopping it")
            supervisor.remove(program.name)
        if program.name in differences.added | differences.changed:
            supervisor.add(program.name)
            start(supervisor, [program])
    stack.save()
    start(supervisor, [program for program in stack.programs if not supervisor.state(program.name).runs])
    for name in differences.removed:
        say(f"{name} is no longer needed: stopping it")
        supervisor.remove(name)


def check_sources(stack: Stack) -> None:
    """Says what changes of the sources. Raises `LocalError` if the roles would not start with the declared sources, or
    with their settings.
    """
    outcome = subprocess.run(
        [servers.executable("bronze"), "sources", "check"],
        env=environment(stack.roles[0]),
        capture_output=True,
        text=True,
        check=False,
    )
    if outcome.returncode in {1, 2}:
        reason = (outcome.stdout + outcome.stderr).strip().removeprefix("bronze sources: ")
        raise LocalError(f"{reason}\nNothing was changed")
    *changes, _ = outcome.stdout.splitlines() or [""]
    for change in changes:
        if not change.endswith("no change"):
            say(f"source {change}")


def warn_of_unsent(built: Built, exporters: Exporters) -> None:
    for queue in unsent(servers.queues(collector_state(UP)), exporters.layers, built):
        say(f"note: {queue}")


def start(supervisor: Supervisor, programs: Sequence[Program]) -> None:
    """Returns when all programs are ready. Programs that already run are not restarted."""
    for program in programs:
        supervisor.start(program)
    for program in programs:
        supervisor.wait_ready(program)
        say(f"{program.name} is ready on port {_port(program)}")


def directory_of(sample: str | None) -> Path:
    """The directory of a sample: the committed days, or `year`, which is created if it does not exist."""
    return samples.year(say) if sample == "year" else samples.DAYS


def follow_sample(stack: Stack, supervisor: Supervisor, files: Path) -> evidence.Investigation:
    """Follows the sample through the system. Programs that send start afterwards, so that it has the system alone."""
    investigation = evidence.Investigation(stack, say, files)
    investigation.run()
    start(supervisor, stack.senders)
    investigation.count_targets()
    return investigation


def status() -> int:
    """Shows each program and whether it works. Exit code 0 if all of them work, 3 if the system is not running."""
    supervisor = Supervisor(UP)
    stack = Stack.load(UP)
    if not supervisor.runs() or stack is None:
        _console.print("the system is not running: `make up` starts it")
        return 3
    table = Table("program", "port", "state", "works", box=None)
    works, logs_shown = True, []
    states = {state.name: state for state in supervisor.states()}
    for program in stack.programs:
        state = states[program.name]
        try:
            program.ready()
        except NotReady as reason:
            works = False
            if state.state != "STOPPED":
                logs_shown.append(supervisor.log(program.name))
            verdict = f"[red]no: {escape(str(reason))}[/]"
        else:
            verdict = "[green]yes[/]"
        table.add_row(program.name, str(_port(program)), f"{state.state.lower()}, {state.description}", verdict)
    _console.print(table)
    for log in logs_shown:
        _console.print(f"\n{log_tail(log, STATUS_LINES)}", markup=False, soft_wrap=True)
    show_urls(stack)
    return 0 if works else 1


def logs(program: str | None) -> int:
    """Follows the logs until Ctrl-C."""
    supervisor = Supervisor(UP)
    files = [supervisor.log(program)] if program else sorted((UP / "logs").glob("*.log"))
    if not files or not files[0].exists():
        known = ", ".join(sorted(file.stem for file in (UP / "logs").glob("*.log")))
        raise LocalError(
            f"there is no log of {program or 'any program'}; logs: {known or 'none yet, `make up` starts the programs'}"
        )
    try:
        return subprocess.run(["tail", "-n", "20", "-F", *map(str, files)], check=False).returncode
    except KeyboardInterrupt:
        return 0


def down() -> int:
    """Stops everything and keeps the state."""
    supervisor = Supervisor(UP)
    if supervisor.runs():
        say("stopping everything")
        supervisor.shutdown()
        say(f"stopped; the state is kept in {_relative(UP)} (delete that folder to start with fresh state)")
    else:
        _console.print("the system is not running")
    return 0


def check() -> int:
    """Lets the real programs validate their configuration."""
    built = build_all(say)
    exporters = Exporters.configured(settings(), tempo=built.tempo is not None)
    for subject in checks.check_all(built, exporters):
        say(f"valid: {subject}")
    warn_of_unsent(built, exporters)
    return 0


def modules() -> int:
    """Completes local/go/go.mod and go.sum: all modules that programs are built from, with checksums."""
    pin_modules()
    return 0


def sbom() -> int:
    """Writes what the system consists of, and under which licences, to .local/sbom/."""
    write_sbom(STATE / "sbom", say)
    return 0


def audit() -> int:
    """Looks for known vulnerabilities in packages and programs. Exit code 1 also if one could not be looked up."""
    audit_all(say)
    return 0


def images() -> int:
    """Pins the images of compose.yaml and of the Dockerfile by digest."""
    pin_images(say)
    return 0


def show_urls(stack: Stack) -> None:
    ports = stack.ports
    rows = {
        "API": (ports.api, "/docs", "accepts data"),
        "Page": (ports.api, "/", "look up any id or path; the state at a glance"),
        "Prometheus": (ports.prometheus, "/api/v1/query?query=bronze_records_total", "metrics and exemplars"),
        "Zipkin": (ports.zipkin, "/zipkin/", "traces, kept in memory until `make down`"),
        "Tempo": (ports.tempo, "/api/search", "traces, kept on disk; an API only, without web pages"),
        "Grafana": (ports.grafana, "/d/bronze-overview", "the dashboards"),
        "S3": (ports.s3, "", f"the bucket {stack.account.bucket!r}"),
    }
    if stack.built.grafana is None:
        del rows["Grafana"]
    for store in {"zipkin", "tempo"}.difference(stack.exporters.traces):
        del rows[store.capitalize()]
    _console.print(f"\n  exporters: {stack.exporters}", soft_wrap=True)
    for name, (port, path, use) in rows.items():
        _console.print(f"  {name:<12}http://{LOOPBACK}:{port}{path}  [dim]{use}[/]", soft_wrap=True)
    if stack.fleet:
        _console.print(
            "  A simulated fleet sends data every few seconds: `make up FLEET=off` stops it, "
            f"{FLEET_VARIABLE}=off in .env keeps it off.",
            soft_wrap=True,
        )
    env = _relative(stack.root / "env")
    if stack.needs_keys:
        _console.print(
            f"  The API asks for a key (BRONZE_AUTH=keys). To create one, and to send it:\n    . {env}\n    {NEW_KEY}",
            markup=False,
            soft_wrap=True,
        )
    _console.print(f"  For clients, and to read the bucket: `. {env}` sets addresses and credentials.", soft_wrap=True)


def _port(program: Program) -> int:
    """The port that clients of the program use."""
    return next(iter(program.ports.values()))


def _relative(path: Path) -> str:
    """A path relative to the repository, as a user of `make` would type it."""
    return os.path.relpath(path, REPOSITORY)


@contextmanager
def _running_on() -> Iterator[None]:
    """Says with an error, and after Ctrl-C, that the system was not stopped."""
    try:
        yield
    except LocalError as error:
        raise LocalError(f"{error}\n{RUNS_ON}") from error
    except KeyboardInterrupt:
        say(f"interrupted. {RUNS_ON}")
        raise


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Allows one command at a time on a state directory."""
    STATE.mkdir(exist_ok=True)
    STATE.chmod(0o700)
    with (STATE / f"{root.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(f"another `make {root.name}` is running: wait until it ends") from None
        yield


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (status, down, check, modules, sbom, audit, images):
        commands.add_parser(command.__name__, help=command.__doc__).set_defaults(
            run=lambda _, command=command: command()
        )
    for command in (up, demo):
        sampling = commands.add_parser(command.__name__, help=command.__doc__)
        sampling.add_argument(
            "--sample", choices=["year"], help="send all of 2013 (687,074 records) instead of a few days"
        )
        sampling.set_defaults(run=lambda args, command=command: command(args.sample))
    following = commands.add_parser("logs", help=logs.__doc__)
    following.add_argument("program", nargs="?")
    following.set_defaults(run=lambda args: logs(args.program))
    args = parser.parse_args()
    os.umask(UMASK)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops the started programs, too
    try:
        code: int = args.run(args)
    except LocalError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        place = f": {error.filename}" if error.filename else ""
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error.strerror) + place)}")
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
