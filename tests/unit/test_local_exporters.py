"""The choice of exporters: what the settings mean, and that a wrong one is told in a sentence that says what to do."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from local import exporters
from local.checks import check_names
from local.exporters import Exporters, environment, every_layer, files, named
from local.programs import LocalError

LAYER = """\
exporters:
  otlp_http/{name}:
    endpoint: ${{env:MINE_ENDPOINT:-http://127.0.0.1:1}}
    headers: {{key: "${{env:MINE_KEY}}"}}
service:
  pipelines:
    traces/{name}: {{receivers: [forward/traces], exporters: [otlp_http/{name}]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's exporters, for a test to change."""
    copy = tmp_path / "otel-collector"
    for file in exporters.COLLECTOR.rglob("*.yaml"):
        to = copy / file.relative_to(exporters.COLLECTOR)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(file.read_text())
    monkeypatch.setattr(exporters, "COLLECTOR", copy)
    monkeypatch.setattr(exporters, "REPOSITORY", tmp_path)
    return copy / "exporters"


def chosen(by_signal: Mapping[str, str], *, tempo: bool = False) -> Exporters:
    return Exporters.configured({f"BRONZE_{s.upper()}_EXPORTER": text for s, text in by_signal.items()}, tempo=tempo)


def test_unset_takes_what_there_is() -> None:
    """Traces go to Tempo where there is one, else to Zipkin; what is set wins."""
    assert chosen({}) == Exporters(("prometheus",), ("zipkin",), ("file",))
    assert chosen({}, tempo=True).traces == ("tempo",)
    assert chosen({"traces": "zipkin"}, tempo=True).traces == ("zipkin",)
    assert chosen({"metrics": "prometheus-remote-write", "logs": "none"}).layers == (
        "metrics/prometheus-remote-write",
        "traces/zipkin",
        "logs/none",
    )


def test_several() -> None:
    """A list keeps its order; spaces and repetitions do no harm."""
    assert chosen({"traces": " zipkin, file ,zipkin"}).traces == ("zipkin", "file")


def test_the_sampling_is_a_file_in_front_of_the_layers() -> None:
    """Its settings are passed on, and every trace is kept by default."""
    tail = Exporters.configured({"BRONZE_TRACES_SAMPLING": "tail"}, tempo=False)
    assert str(tail).endswith("; traces sampled by tail")
    names = [file.relative_to(exporters.COLLECTOR).as_posix() for file in files(tail.layers, tail.sampling)]
    assert names[:2] == ["config.yaml", "sampling/tail.yaml"]
    assert chosen({}).sampling == "all"
    share = {"COLLECTOR_TRACES_PERCENTAGE": "5"}
    assert environment(tail.layers, share, tail.sampling) == share
    assert environment(tail.layers, share) == {}
    for wrong in ("most", "101", "-1", "nan"):
        with pytest.raises(LocalError, match=f"COLLECTOR_TRACES_PERCENTAGE={wrong} is not a share in percent"):
            Exporters.configured({"BRONZE_TRACES_SAMPLING": "tail", "COLLECTOR_TRACES_PERCENTAGE": wrong}, tempo=False)
    with pytest.raises(LocalError, match="BRONZE_TRACES_SAMPLING=head: 'head' is unknown; known are: all, tail"):
        Exporters.configured({"BRONZE_TRACES_SAMPLING": "head"}, tempo=False)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"traces": "jaeger"}, "BRONZE_TRACES_EXPORTER=jaeger: 'jaeger' is unknown; known exporters: .*tempo, zipkin"),
        ({"metrics": "zipkin"}, "'zipkin' is for traces, not for metrics; known exporters: .*prometheus"),
        ({"traces": ""}, "a name is missing; known exporters: "),
        ({"logs": "file,,debug"}, "a name is missing"),
        ({"logs": "file,none"}, "`none` cannot be combined with others"),
        ({"metrics": "prometheus,prometheus-scrape"}, "prometheus and prometheus-scrape send the same series"),
        ({"metrics": "prometheus-remote-write,file,prometheus"}, "prometheus-remote-write and prometheus send"),
        ({"traces": "tempo"}, "no program `tempo` on PATH: install it, or use zipkin"),
    ],
)
def test_wrong_choice_says_what_to_do(setting: dict[str, str], words: str) -> None:
    with pytest.raises(LocalError, match=words) as error:
        chosen(setting)
    assert "\n" not in str(error.value)


def test_a_file_of_ones_own_is_an_exporter(folder: Path) -> None:
    """It is chosen by its name, and is given the settings that it names, and no others."""
    (folder / "traces" / "mine.yaml").write_text(LAYER.format(name="mine"))
    layers = chosen({"traces": "mine"}).layers
    assert environment(layers, {"MINE_KEY": "k", "HOME": "/", "OTLP_TRACES_HEADERS": "{}"}) == {"MINE_KEY": "k"}
    check_names(every_layer())


def test_one_name_in_two_files(folder: Path) -> None:
    """Two files that name an exporter alike would become one by half: both are named."""
    (folder / "traces" / "mine.yaml").write_text(LAYER.format(name="tempo"))
    with pytest.raises(LocalError, match=r"traces/mine.yaml and .*traces/tempo.yaml both have the exporter"):
        check_names(every_layer())


@pytest.mark.parametrize(
    ("text", "words"),
    [("exporters: [", "is not valid YAML"), ("exporters: {nop/x:}", "has no `exporters` or"), ("", "has no")],
)
def test_a_broken_file_is_named(folder: Path, text: str, words: str) -> None:
    (folder / "traces" / "mine.yaml").write_text(text)
    with pytest.raises(LocalError, match=rf"otel-collector/exporters/traces/mine.yaml {words}"):
        named("traces/mine")
