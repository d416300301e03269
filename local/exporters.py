"""Where telemetry goes: for each signal, which files of `otel-collector/exporters/` the collector is started with.

There is one setting for each signal. A file that somebody puts into a signal's folder is an exporter as ours are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import yaml

from local.builds import REPOSITORY
from local.programs import LocalError

COLLECTOR = REPOSITORY / "otel-collector"
#: One Prometheus takes the metrics by one of these: by two, it would count everything twice.
PROMETHEUS = ("prometheus", "prometheus-remote-write", "prometheus-scrape")

_VARIABLE = re.compile(r"\$\{env:(\w+)")


def variable(signal: str) -> str:
    return f"BRONZE_{signal.upper()}_EXPORTER"


def layer_file(layer: str) -> Path:
    """The file of a layer, which is named `{signal}/{exporter}`."""
    return COLLECTOR / "exporters" / f"{layer}.yaml"


def shown(layer: str) -> str:
    return str(layer_file(layer).relative_to(REPOSITORY))


def known(signal: str) -> list[str]:
    """The exporters that there are for a signal."""
    return sorted(file.stem for file in (COLLECTOR / "exporters" / signal).glob("*.yaml"))


def every_layer() -> list[str]:
    return [f"{signal}/{name}" for signal in SIGNALS for name in known(signal)]


def named(layer: str) -> Mapping[str, list[str]]:
    """The ids of the exporters and of the pipelines that a layer's file brings. Raises `LocalError` if it has none."""
    try:
        content = yaml.safe_load(layer_file(layer).read_text())
        return {"exporter": [*content["exporters"]], "pipeline": [*content["service"]["pipelines"]]}
    except yaml.YAMLError as error:
        raise LocalError(f"{shown(layer)} is no YAML; mend it where it says:\n{error}") from error
    except (KeyError, TypeError) as error:
        raise LocalError(
            f"{shown(layer)} has no `exporters` or no `service: pipelines`; write them as the files beside it do"
        ) from error


def files(layers: Iterable[str]) -> tuple[Path, ...]:
    """The collector's configuration, when telemetry goes to these layers."""
    return (COLLECTOR / "config.yaml", *map(layer_file, layers))


def arguments(layers: Iterable[str]) -> tuple[str, ...]:
    """The same, as the collector is told."""
    return tuple(argument for file in files(layers) for argument in ("--config", str(file)))


def environment(layers: Iterable[str], settings: Mapping[str, str]) -> dict[str, str]:
    """Those of the settings that these files read."""
    read = {name for file in files(layers) for name in _VARIABLE.findall(file.read_text())}
    return {name: settings[name] for name in sorted(read) if name in settings}


@dataclass(frozen=True)
class Exporters:
    """The exporters in use for each signal; the defaults are what packages bring."""

    metrics: tuple[str, ...] = ("prometheus",)
    traces: tuple[str, ...] = ("zipkin",)
    logs: tuple[str, ...] = ("file",)

    @classmethod
    def configured(cls, settings: Mapping[str, str], *, tempo: bool) -> Self:
        """What the settings say. Unless they say otherwise, traces go to Tempo where this machine has one.

        Raises `LocalError` for what there is not, or what does not go together.
        """
        chosen: dict[str, tuple[str, ...]] = {"traces": ("tempo",)} if tempo else {}
        chosen |= {s: _chosen(s, settings[variable(s)]) for s in SIGNALS if variable(s) in settings}
        exporters = cls(**chosen)
        if "tempo" in exporters.traces and not tempo:
            raise LocalError(
                f"{variable('traces')} names tempo, and no program `tempo` is on PATH: install it there, take zipkin, "
                "or otlp-http for one that runs elsewhere (OTLP_TRACES_ENDPOINT)"
            )
        return exporters

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"{signal}/{name}" for signal in SIGNALS for name in getattr(self, signal))

    def __str__(self) -> str:
        return "; ".join(f"{signal} to {', '.join(getattr(self, signal))}" for signal in SIGNALS)


SIGNALS = tuple(field.name for field in fields(Exporters))


def _chosen(signal: str, text: str) -> tuple[str, ...]:
    """The exporters that a setting lists, each once."""
    setting = f"{variable(signal)}={text}"
    there_are = f"there are {', '.join(known(signal))}"
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if not name:
            raise LocalError(f"{setting}: a name is missing; {there_are}")
        if name not in known(signal):
            others = " and ".join(other for other in SIGNALS if name in known(other))
            what = f"is for {others}, not for {signal}" if others else "is not known"
            raise LocalError(f"{setting}: {name!r} {what}; {there_are}")
    if "none" in names and len(names) > 1:
        raise LocalError(f"{setting}: `none` stands alone; leave it out, or the others")
    if signal == "metrics" and len(doubled := [name for name in names if name in PROMETHEUS]) > 1:
        raise LocalError(
            f"{setting}: {' and '.join(doubled)} bring the same series into one Prometheus, where each sum would count "
            "them twice; take one of them"
        )
    return names
