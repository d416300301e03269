import configparser
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from supervisor.datatypes import dict_of_key_value_pairs  # type: ignore[import-untyped]

from bronze.records.sources import built_in_file
from bronze.settings import Settings
from grafana.traces import LINEAGE, TRACE_PANEL
from local import __main__ as commands
from local import servers
from local.builds import REPOSITORY, Built
from local.exporters import Exporters
from local.programs import LocalError, Program
from local.settings import WORKERS_MAX
from local.stack import Ports, Stack
from local.supervision import SOCKET_PATH_BYTES_MAX, Supervisor, configuration

#: Addresses in the settings that no command acts on: those that the API listens on, those that pages
#: link to, and the receiver of events.
NOT_ACTED_ON = {"api_host", "runbook_url", "trace_url", "webhook_url"}

BUILT = Built(Path("/x/otelcol"), Path("/x/prometheus"), Path("/x/zipkin.jar"))


def test_port_is_moved_by_its_setting() -> None:
    """Each port has a setting; the others keep their defaults."""
    ports = Ports.configured({"BRONZE_LOCAL_PORT_ZIPKIN": "9999"})
    assert (ports.zipkin, ports.api) == (9999, 8000)


@pytest.mark.parametrize("text", ["http", "0", "70000", "-1"])
def test_wrong_port_is_named(text: str) -> None:
    with pytest.raises(LocalError, match="BRONZE_LOCAL_PORT_API"):
        Ports.configured({"BRONZE_LOCAL_PORT_API": text})


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"S3": "8000"}, "S3=8000 (ports 8000 to 8009) and API=8000 overlap: change one of them"),
        (
            {"NATS": "8341"},
            "S3=8333 (ports 8333 to 8342) and NATS=8341 (ports 8341 to 8346) overlap: change one of them",
        ),
        (
            {"OTLP": "8339"},
            "S3=8333 (ports 8333 to 8342) and OTLP=8339 (ports 8339 to 8344) overlap: change one of them",
        ),
        ({"API": "9466"}, "API=9466 and CANARY=9466 overlap: change one of them"),
        ({"OTLP": "65531"}, "OTLP=65531 (ports 65531 to 65536) ends after the last port, 65535: choose a lower one"),
    ],
)
def test_overlapping_ports_are_named(chosen: dict[str, str], named: str) -> None:
    """Both settings, with all ports of their blocks; blocks that only touch each other are accepted."""
    with pytest.raises(LocalError) as raised:
        Ports.configured({f"BRONZE_LOCAL_PORT_{name}": port for name, port in chosen.items()})
    assert str(raised.value).replace("BRONZE_LOCAL_PORT_", "") == named
    assert Ports.configured({"BRONZE_LOCAL_PORT_NATS": "8343"}).nats == 8343


def test_blocks_of_ports_are_said_where_they_are_set() -> None:
    blocks = (
        f"{servers.NATS_PORTS} ports, S3 {{0}}{servers.SEAWEEDFS_PORTS}, OTLP {{0}}{servers.COLLECTOR_PORTS}, "
        f"TEMPO {{0}}{servers.TEMPO_PORTS}{{1}} WORKERS {{0}}{2 * WORKERS_MAX}"
    )
    example = (REPOSITORY / ".env.example").read_text().replace("\n# ", " ")
    assert blocks.format("", " and") in example
    assert blocks.format("of ", ",") in (REPOSITORY / "Makefile").read_text()


def test_stack_is_found_again(tmp_path: Path) -> None:
    """What a later command loads is what was started: the same names, ports, keys and commands."""
    assert Stack.load(tmp_path / "up") is None
    created = Stack.create(tmp_path / "up", Ports.free(), BUILT)
    loaded = Stack.load(tmp_path / "up")
    assert loaded == created
    assert [p.command for p in loaded.programs] == [p.command for p in created.programs]
    assert loaded.client_env == created.client_env


def test_status_of_a_system_that_does_not_run_has_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make status` takes it for an answer; 1 means that something does not work."""
    monkeypatch.setattr(commands, "UP", tmp_path)
    assert commands.status() == 3
    assert capsys.readouterr().out == "the system is not running: `make up` starts it\n"


def test_next_start_is_another_identity(tmp_path: Path) -> None:
    """A new start on old state has names of its own, and the bucket's old account."""
    first = Stack.create(tmp_path / "up", Ports(), BUILT)
    second = Stack.create(tmp_path / "up", Ports(), BUILT)
    assert first.name != second.name
    assert first.account == second.account


@pytest.mark.parametrize("ports", [Ports(), Ports.free()], ids=["default", "free"])
def test_no_two_programs_share_a_port(ports: Ports, tmp_path: Path) -> None:
    """The ports collide nowhere, those that SeaweedFS and the collector add of their own included."""
    everything = Exporters(("prometheus-remote-write", "prometheus-scrape"), ("tempo", "zipkin"))
    stack = Stack.create(tmp_path / "up", ports, replace(BUILT, tempo=Path("/x/tempo")), everything)
    taken = [port for program in stack.programs for port in program.ports.values()]
    assert len(taken) == len(set(taken))


def test_the_collector_samples_by_the_flush_age_of_the_roles(tmp_path: Path) -> None:
    """It waits for their uploads. The choice of the sampling is saved."""
    stack = Stack.create(tmp_path, Ports(), BUILT, Exporters(sampling="tail"))
    assert "sampling/tail.yaml" in " ".join(stack.collector.command)
    assert len({program.env["BRONZE_FLUSH_AGE_S"] for program in (stack.collector, *stack.roles)}) == 1
    assert Stack.load(tmp_path) == stack


def test_the_next_start_continues_with_the_catalog_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the state, or where the user wants it. Only an API has one."""

    def folders() -> dict[str, str]:
        programs = Stack.create(tmp_path, Ports(), BUILT).programs
        return {
            program.name: program.env["BRONZE_VIEW_DIR"] for program in programs if "BRONZE_VIEW_DIR" in program.env
        }

    monkeypatch.delenv("BRONZE_VIEW_DIR", raising=False)
    assert folders() == {"api": str(tmp_path / "view")}
    monkeypatch.setenv("BRONZE_VIEW_DIR", "/mine")
    assert folders()["api"] == "/mine"


def test_the_api_does_not_start_anew_for_other_exporters(tmp_path: Path) -> None:
    """Its environment says where its page leads to, which is of the machine and not of the choice."""
    stack = Stack.create(tmp_path, Ports(), BUILT)
    swapped = replace(stack, exporters=Exporters(("prometheus-scrape",), ("file",)))
    assert [(one.name, one.env) for one in swapped.roles] == [(one.name, one.env) for one in stack.roles]


@pytest.mark.parametrize("grafana", [None, Path("/x/grafana")], ids=["Zipkin", "Grafana"])
def test_the_page_leads_to_where_traces_are_seen(tmp_path: Path, grafana: Path | None) -> None:
    """To Zipkin, or to the panel of a dashboard where this machine has Tempo and Grafana; unless a setting says."""
    stack = Stack.create(tmp_path, Ports(), replace(BUILT, tempo=grafana, grafana=grafana))
    env = next(one.env for one in stack.roles if one.name == "api")
    panel = f"http://127.0.0.1:3000/d/{LINEAGE}?var-trace_id={{trace_id}}&viewPanel=panel-{TRACE_PANEL}"
    assert env["BRONZE_TRACE_URL"] == (panel if grafana else "http://127.0.0.1:9411/zipkin/traces/{trace_id}")
    assert env["BRONZE_PROMETHEUS_URL"] == "http://127.0.0.1:9090"


def test_a_place_of_traces_that_is_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRONZE_TRACE_URL", "https://traces.example/{trace_id}")
    env = next(one.env for one in Stack.create(tmp_path, Ports(), BUILT).roles if one.name == "api")
    assert env["BRONZE_TRACE_URL"] == "https://traces.example/{trace_id}"


def test_only_the_notifier_gets_its_secrets_and_it_runs_if_it_has_a_receiver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets of a webhook and keys of a lineage server are in no other process, nor in the file for commands."""
    secrets = {"BRONZE_WEBHOOK_SECRETS", "OPENLINEAGE_API_KEY"}
    monkeypatch.setenv("BRONZE_WEBHOOK_SECRETS", "whsec_x")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-key")
    stack = Stack.create(tmp_path, Ports(), BUILT)
    assert "notify" not in {program.name for program in stack.programs}
    for receiver in ("BRONZE_WEBHOOK_URL", "OPENLINEAGE_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(receiver, "http://receiver")
            stack = Stack.create(tmp_path, Ports(), BUILT)
            env = {program.name: program.env for program in stack.programs}
            assert env["notify"][receiver] == "http://receiver"
            assert {
                name for name, its in env.items() if {"BRONZE_WEBHOOK_SECRETS", "OPENLINEAGE_API_KEY"} & its.keys()
            } == {"notify"}
            assert "scrape-notify" in stack.targets
    assert not secrets & variables_in(tmp_path / "env").keys()


def test_retention_runs_if_there_is_an_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all sources or of one. Its account of the bucket is its own."""
    declaration = tmp_path / "sources.toml"
    declaration.write_text(built_in_file().read_text())
    monkeypatch.setenv("BRONZE_SOURCES", str(declaration))

    def programs() -> dict[str, Program]:
        return {program.name: program for program in Stack.create(tmp_path, Ports(), BUILT).programs}

    assert "retain" not in programs()
    with monkeypatch.context() as patch:
        patch.setenv("BRONZE_RETENTION_DAYS", "30")
        retain = programs()["retain"]
        assert retain.env["BRONZE_RETENTION_DAYS"] == "30"
        assert retain.env["AWS_ACCESS_KEY_ID"] == "bronze-retain"
        assert retain.command[1:5] == ("retain", "--every", "1d", "--yes")
        assert Stack.create(tmp_path, Ports(), BUILT).targets["scrape-retain"] == [9486]
    declaration.write_text(declaration.read_text().replace("\n[vehicles]", "\n[vehicles]\nretention_days = 30"))
    assert "retain" in programs()
    declaration.write_text("[")
    assert "retain" not in programs()


def test_the_file_for_commands_sets_every_address(tmp_path: Path) -> None:
    """So that no command acts on what listens on a default port: each address has a port of this stack."""
    ports = Ports.free()
    built = replace(BUILT, tempo=Path("/x/tempo"))
    addresses = {
        f"BRONZE_{name.upper()}"
        for name, setting in Settings.model_fields.items()
        if name not in NOT_ACTED_ON and (name.endswith("_url") or str(setting.description).startswith("Address"))
    } | {"AWS_ENDPOINT_URL_S3", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    for traces, unset in ("tempo", "BRONZE_ZIPKIN_URL"), ("zipkin", "BRONZE_TEMPO_URL"):
        stack = Stack.create(tmp_path, ports, built, Exporters(traces=(traces,)))
        variables = variables_in(tmp_path / "env")
        taken = {str(port) for port in vars(ports).values()}
        not_ours = {name for name in addresses if variables.get(name, "").rpartition(":")[2] not in taken}
        assert not_ours == {unset}
        assert variables[unset] == "", "an address of the shell does not stay"
        assert variables["BRONZE_NATS_SERVER_NAME"] == stack.name
        assert (variables["BRONZE_BUCKET"], variables["BRONZE_PREFIX"]) == (stack.account.bucket, "bronze")


def test_the_file_for_commands_has_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bronze lanes` changes the lanes of the declared sources."""
    monkeypatch.setenv("BRONZE_SOURCES", str(tmp_path / "own.toml"))
    Stack.create(tmp_path, Ports(), BUILT)
    assert variables_in(tmp_path / "env")["BRONZE_SOURCES"] == str(tmp_path / "own.toml")


def test_the_file_for_commands_has_the_settings_of_the_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bronze lanes` creates streams of the same size as a consumer does."""
    of_roles = {"BRONZE_QUEUE_BYTES_MAX": "4194304", "BRONZE_QUEUE_REPLICAS": "3", "BRONZE_LANES": "2"}
    for name, value in {**of_roles, "BRONZE_API_KEY": "secret", "BRONZE_LOCAL_PORT_API": "8001"}.items():
        monkeypatch.setenv(name, value)
    Stack.create(tmp_path, Ports(), BUILT)
    variables = variables_in(tmp_path / "env")
    assert of_roles.items() <= variables.items()
    assert "BRONZE_FLUSH_AGE_S" in variables
    assert not {"BRONZE_API_KEY", "BRONZE_LOCAL_PORT_API"} & variables.keys()


def test_exported_settings_reach_roles_and_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in what the supervisor compares, so that a second start takes a change."""
    monkeypatch.setenv("BRONZE_FLUSH_AGE_S", "7")
    monkeypatch.setenv("BRONZE_LOG_LEVEL", "DEBUG")
    stack = Stack.create(tmp_path, Ports(), BUILT)
    assert {program.env["BRONZE_FLUSH_AGE_S"] for program in (stack.collector, *stack.roles)} == {"7"}
    assert {program.env["BRONZE_LOG_LEVEL"] for program in (*stack.roles, *stack.senders)} == {"DEBUG"}
    assert variables_in(tmp_path / "env")["BRONZE_FLUSH_AGE_S"] == "7"


def test_without_a_fleet_nothing_expects_one(tmp_path: Path) -> None:
    """Neither the supervisor nor Prometheus; and a later command knows that there is none."""
    stack = Stack.create(tmp_path, Ports(), BUILT, fleet=False)
    assert "publisher" not in {program.name for program in stack.programs}
    assert "scrape-publisher" not in stack.targets
    assert Stack.load(tmp_path) == stack
    assert Stack.create(tmp_path, Ports(), BUILT).programs[-1].name == "publisher"


def test_each_worker_is_scraped(tmp_path: Path) -> None:
    """On a port of its own, which no other program has; without workers, the roles' own ports are."""
    stack = Stack.create(tmp_path, Ports(), BUILT, workers=WORKERS_MAX)
    api, consumer = stack.roles
    taken = [port for program in stack.programs for port in program.ports.values()]
    assert len(taken) == len(set(taken))
    for role in (api, consumer):
        assert role.env["BRONZE_WORKERS"] == str(WORKERS_MAX)
        assert len(stack.targets[f"scrape-{role.name}"]) == WORKERS_MAX
        assert {*stack.targets[f"scrape-{role.name}"]} <= {*role.ports.values()}
        assert role.env["OTEL_EXPORTER_PROMETHEUS_PORT"] == str(stack.targets[f"scrape-{role.name}"][0])
    assert Stack.load(tmp_path) == stack
    single = Stack.create(tmp_path, Ports(), BUILT)
    assert (single.targets["scrape-api"], single.targets["scrape-consumer"]) == ([8000], [9464])


def test_three_servers_of_the_queue(tmp_path: Path) -> None:
    """On ports of their own; roles and commands know all of them, and streams have three replicas. The names stay the
    same at each start.
    """
    stack = Stack.create(tmp_path, Ports(), BUILT, nats_servers=3)
    assert [program.name for program in stack.stores] == ["nats-1", "nats-2", "nats-3", "seaweedfs"]
    taken = [port for program in stack.programs for port in program.ports.values()]
    assert len(taken) == len(set(taken))
    for variables in (stack.roles[0].env, stack.roles[1].env, stack.canary.env, variables_in(tmp_path / "env")):
        assert variables["BRONZE_NATS_URL"] == ",".join(f"nats://127.0.0.1:{port}" for port in (4222, 4223, 4224))
        assert variables["BRONZE_QUEUE_REPLICAS"] == "3"
        assert variables["BRONZE_NATS_SERVER_NAME"] == stack.queue_name
    assert Stack.load(tmp_path) == stack
    again = Stack.create(tmp_path, Ports(), BUILT, nats_servers=3)
    assert (again.queue_name, again.name == stack.name) == (stack.queue_name, False)


def test_another_number_of_queue_servers_needs_a_move(tmp_path: Path) -> None:
    """NATS would delete the streams of a single server that joins a cluster."""
    (tmp_path / "one" / "nats" / "jetstream").mkdir(parents=True)
    with pytest.raises(LocalError, match=r"has one server, and cannot get three .*BRONZE_LOCAL_NATS=1"):
        Stack.create(tmp_path / "one", Ports(), BUILT, nats_servers=3)
    assert Stack.create(tmp_path / "one", Ports(), BUILT)
    assert Stack.create(tmp_path / "three", Ports(), BUILT, nats_servers=3).programs
    with pytest.raises(LocalError, match=r"has three servers, and cannot get one .*BRONZE_LOCAL_NATS=3"):
        Stack.create(tmp_path / "three", Ports(), BUILT)


def test_ports_of_a_running_system_are_kept_and_named() -> None:
    assert list(Ports(api=8001).ignored(Ports(zipkin=9999))) == [
        "BRONZE_LOCAL_PORT_ZIPKIN is 9999 now, but the system runs on 9411: `make down`, then `make up` change it",
        "BRONZE_LOCAL_PORT_API is 8000 now, but the system runs on 8001: `make down`, then `make up` change it",
    ]
    assert list(Ports().ignored(Ports())) == []


def variables_in(file: Path) -> dict[str, str]:
    """The variables that a file for a shell exports."""
    exported = re.findall(r"^export (\w+)=(.*)$", file.read_text(), re.MULTILINE)
    return {name: "".join(shlex.split(value)) for name, value in exported}


def test_configuration_keeps_every_character() -> None:
    """A state directory with spaces and per cent signs reaches the supervisor as it is."""
    root = Path("/tmp/50% of it")
    program = Program("p", ("run", f"--dir={root}"), {}, lambda: None, env={"DIR": str(root)})
    parsed = configparser.ConfigParser()
    parsed.read_string(configuration(root, root / "s.sock", [program], restarts=True))
    section = parsed["program:p"]
    assert section["command"] == "run '--dir=/tmp/50% of it'"
    assert section["environment"] == 'DIR="/tmp/50% of it"'
    assert section["stdout_logfile"] % {} == "/tmp/50% of it/logs/p.log"


def test_configuration_takes_a_map_of_headers() -> None:
    """A value with quotes in it reaches the program as it is; one with both kinds is told."""
    headers = '{"x-api-key": "a,b=c"}'
    text = configuration(Path("/x"), Path("/x/s"), [Program("p", ("p",), {}, int, env={"H": headers})], restarts=True)
    parsed = configparser.RawConfigParser()
    parsed.read_string(text)
    assert dict_of_key_value_pairs(parsed["program:p"]["environment"]) == {"H": headers}
    with pytest.raises(LocalError, match="H has both kinds of quotes"):
        configuration(Path("/x"), Path("/x/s"), [Program("p", ("p",), {}, int, env={"H": "'\""})], restarts=True)


def test_only_what_the_exporters_need_is_started(tmp_path: Path) -> None:
    """A trace store runs if traces go to it; Prometheus always does."""
    tempo = replace(BUILT, tempo=Path("/x/tempo"))

    def started(traces: str) -> set[str]:
        stack = Stack.create(tmp_path, Ports(), tempo, Exporters(traces=tuple(traces.split(","))))
        return {program.name for program in stack.servers} - {"nats", "seaweedfs", "otel-collector"}

    assert started("zipkin") == {"prometheus", "zipkin"}
    assert started("tempo,zipkin") == {"prometheus", "tempo", "zipkin"}
    assert started("otlp-http") == {"prometheus"}


def test_scrape_targets_follow_the_exporters(tmp_path: Path) -> None:
    """Prometheus scrapes the collector's exporter as long as metrics go that way, and no longer."""
    target = tmp_path / "prometheus" / "targets" / "collector-exporter.yaml"
    for metrics, scraped in (("prometheus-scrape", True), ("prometheus", False)):
        assert Stack.create(tmp_path, Ports(), BUILT, Exporters(metrics=(metrics,))).servers
        assert target.exists() == scraped


def test_deep_directory_has_a_short_socket(tmp_path: Path) -> None:
    """A checkout deep in the tree still gets a socket that the system can bind."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    assert len(os.fsencode(Supervisor(deep)._socket)) <= SOCKET_PATH_BYTES_MAX
    assert Supervisor(deep)._socket != Supervisor(deep / "other")._socket
