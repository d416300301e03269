"""The destinations of telemetry: for each signal, the files of `otel-collector/exporters/` that the collector uses; and
the file of `otel-collector/sampling/` that decides which traces they get.

There is one setting per signal, and one for the sampling. Each file in a folder is a value that the setting can have.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

from local.builds import REPOSITORY
from local.programs import LocalError

COLLECTOR = REPOSITORY / "otel-collector"
#: Prometheus receives the metrics by one of these. By two of them, it would count everything twice.
PROMETHEUS = ("prometheus", "prometheus-remote-write", "prometheus-scrape")

SIGNALS = ("metrics", "traces", "logs")
SAMPLING_VARIABLE = "BRONZE_TRACES_SAMPLING"
#: The share of the traces that the sampling `tail` keeps in addition.
SHARE_VARIABLE = "COLLECTOR_TRACES_PERCENTAGE"
EVERY_TRACE = "all"

_VARIABLE = re.compile(r"\$\{env:(\w+)")


def variable(signal: str) -> str:
    return f"BRONZE_{signal.upper()}_EXPORTER"


def layer_file(layer: str) -> Path:
    """The file of an exporter layer, whose name is `{signal}/{exporter}`."""
    return COLLECTOR / "exporters" / f"{layer}.yaml"


def sampling_file(sampling: str) -> Path:
    return COLLECTOR / "sampling" / f"{sampling}.yaml"


#: Lets only those send telemetry who have the token.
ACCESS = COLLECTOR / "access" / "token.yaml"


def shown(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


def known(signal: str) -> list[str]:
    """The exporters that exist for a signal."""
    return sorted(file.stem for file in (COLLECTOR / "exporters" / signal).glob("*.yaml"))


def known_samplings() -> list[str]:
    return sorted(file.stem for file in (COLLECTOR / "sampling").glob("*.yaml"))


def every_layer() -> list[str]:
    return [f"{signal}/{name}" for signal in SIGNALS for name in known(signal)]


def named(layer: str) -> Mapping[str, list[str]]:
    """The ids of the exporters and pipelines in a layer's file. Raises `LocalError` if it has none."""
    try:
        content = yaml.safe_load(layer_file(layer).read_text())
        return {"exporter": [*content["exporters"]], "pipeline": [*content["service"]["pipelines"]]}
    except yaml.YAMLError as error:
        raise LocalError(f"{shown(layer_file(layer))} is not valid YAML; correct it:\n{error}") from error
    except (KeyError, TypeError) as error:
        raise LocalError(
            f"{shown(layer_file(layer))} has no `exporters` or no `service: pipelines`; add them as in the other files "
            "of the folder"
        ) from error


def files(layers: Iterable[str], sampling: str = EVERY_TRACE) -> tuple[Path, ...]:
    """The collector's configuration files for these layers."""
    return (COLLECTOR / "config.yaml", sampling_file(sampling), *map(layer_file, layers))


def arguments(layers: Iterable[str], sampling: str = EVERY_TRACE) -> tuple[str, ...]:
    """The collector's arguments for these layers."""
    return tuple(argument for file in files(layers, sampling) for argument in ("--config", str(file)))


def environment(layers: Iterable[str], settings: Mapping[str, str], sampling: str = EVERY_TRACE) -> dict[str, str]:
    """The settings that the collector's files for these layers refer to."""
    read = {name for file in files(layers, sampling) for name in _VARIABLE.findall(file.read_text())}
    return {name: settings[name] for name in sorted(read) if name in settings}


@dataclass(frozen=True)
class Exporters:
    """The exporters in use for each signal, and the sampling of the traces that they get; the defaults need only
    programs from packages.
    """

    metrics: tuple[str, ...] = ("prometheus",)
    traces: tuple[str, ...] = ("zipkin",)
    logs: tuple[str, ...] = ("file",)
    sampling: str = EVERY_TRACE

    @classmethod
    def configured(cls, settings: Mapping[str, str], *, tempo: bool) -> Self:
        """The exporters and the sampling that the settings name. Without a setting, traces go to Tempo if it is
        installed.

        Raises `LocalError` for unknown names, and for exporters that cannot be combined.
        """
        chosen: dict[str, tuple[str, ...]] = {"traces": ("tempo",)} if tempo else {}
        chosen |= {s: _chosen(s, settings[variable(s)]) for s in SIGNALS if variable(s) in settings}
        sampling = settings.get(SAMPLING_VARIABLE) or EVERY_TRACE
        if sampling not in known_samplings():
            raise LocalError(
                f"{SAMPLING_VARIABLE}={sampling}: {sampling!r} is unknown; known are: {', '.join(known_samplings())}"
            )
        if sampling == "tail":
            _check_share(settings.get(SHARE_VARIABLE, ""))
        exporters = cls(**chosen, sampling=sampling)
        if "tempo" in exporters.traces and not tempo:
            raise LocalError(
                f"{variable('traces')} names tempo, but there is no program `tempo` on PATH: install it, or use "
                "zipkin, or use otlp-http for a Tempo that runs elsewhere (OTLP_TRACES_ENDPOINT)"
            )
        return exporters

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"{signal}/{name}" for signal in SIGNALS for name in getattr(self, signal))

    def __str__(self) -> str:
        destinations = "; ".join(f"{signal} to {', '.join(getattr(self, signal))}" for signal in SIGNALS)
        return destinations if self.sampling == EVERY_TRACE else f"{destinations}; traces sampled by {self.sampling}"


def _check_share(text: str) -> None:
    """Raises `LocalError` unless a share in percent is not set, or a number from 0 to 100."""
    try:
        valid = not text or 0 <= float(text) <= 100
    except ValueError:
        valid = False
    if not valid:
        raise LocalError(f"{SHARE_VARIABLE}={text} is not a share in percent: use a number from 0 to 100, such as 10")


def _chosen(signal: str, text: str) -> tuple[str, ...]:
    """The exporters that a setting lists, without repetitions."""
    setting = f"{variable(signal)}={text}"
    known_exporters = f"known exporters: {', '.join(known(signal))}"
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if not name:
            raise LocalError(f"{setting}: a name is missing; {known_exporters}")
        if name not in known(signal):
            others = " and ".join(other for other in SIGNALS if name in known(other))
            reason = f"is for {others}, not for {signal}" if others else "is unknown"
            raise LocalError(f"{setting}: {name!r} {reason}; {known_exporters}")
    if "none" in names and len(names) > 1:
        raise LocalError(f"{setting}: `none` cannot be combined with others; remove it, or the others")
    if signal == "metrics" and len(doubled := [name for name in names if name in PROMETHEUS]) > 1:
        raise LocalError(
            f"{setting}: {' and '.join(doubled)} send the same series to one Prometheus, so each sum would count "
            "them twice; use one of them"
        )
    return names
