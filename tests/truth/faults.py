"""The stages of the run: what fails in each, when, and which alerts that explains.

The times are drawn from a seed. All processes work again before a stage ends.
"""

import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tests.truth.load import Load
from tests.truth.running import API, CONSUMER, ROLES, Running
from tests.truth.shifted_clock import Clock

#: An alert may still fire so long after the fault: its window, and the time for which its condition has to be true.
EXPLAINED_S = 2 * 900
HOUR_S = 3600.0


@dataclass(frozen=True)
class Event:
    """Something that happens `at_s` seconds after the begin of its stage. `fault` is a key of `EXPLAINS`; it is empty
    where a fault ends.
    """

    at_s: float
    fault: str
    act: Callable[[Running, Load], None]


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    events: Sequence[Event]


_PROCESS = frozenset({"BronzeDeliveriesLate", "BronzeRequestsSlow", "BronzeConsumerErrors"})
_NO_METRICS = frozenset({"BronzeTelemetryMissing", "BronzePathsDiffer", "BronzeUploadsMissing", "BronzeCanaryMissing"})

#: The canary needs the telemetry of a submission within a minute, and its own to arrive.
_NOT_COUNTED = frozenset({"BronzeCanaryMiscounted", "BronzeCanaryExemplarMissing"})
_NOT_TRACED = frozenset({"BronzeCanaryTraceIncomplete", "BronzeCanaryExemplarMissing", "BronzeVerificationFaulty"})
_CANARY = _NOT_COUNTED | _NOT_TRACED

#: The alerts that each fault explains. Those that a fault only can cause, depending on its duration, are in it too.
EXPLAINS: Mapping[str, frozenset[str]] = {
    "API restarted": frozenset({"BronzeRequestsSlow"}),
    "consumer restarted": _PROCESS,
    "API killed": _CANARY | {"BronzeRequestsSlow", "BronzeSdkDrops"},
    "consumer killed": _CANARY | _PROCESS,
    "Prometheus suspended": _NOT_COUNTED | {"BronzeExporterStalled", "BronzePrometheusRejectsExemplars"},
    "Prometheus stopped": _NO_METRICS | _NOT_COUNTED | {"BronzeExporterStalled", "BronzePrometheusRejectsExemplars"},
    "trace store stopped": _NOT_TRACED | {"BronzeExporterStalled", "BronzeCollectorQueueFull"},
    "collector stopped": _NO_METRICS
    | _CANARY
    | {"BronzeSdkDrops", "BronzeTargetDown", "BronzePrometheusRejectsExemplars"},
    "collector killed": _NO_METRICS | _CANARY | {"BronzeSdkDrops", "BronzePrometheusRejectsExemplars"},
    "API's clock an hour ahead": _NO_METRICS | _CANARY | {"BronzePrometheusRejects", "BronzeCollectorDrops"},
    "consumer's clock an hour ahead": _NO_METRICS
    | _PROCESS
    | _CANARY
    | {
        "BronzeCanaryNotStored",
        "BronzePrometheusRejects",
        "BronzeCollectorDrops",
        "BronzeBacklogOverdue",
        "BronzeUploadsFail",
        "BronzeUploadAttemptsFail",
    },
    "records that do not fit their source": frozenset({"BronzeRecordsQuarantined"}),
    "an object deleted": frozenset({"BronzeRecordsMissing"}),
    "a message deleted": frozenset({"BronzeRecordsMissing", "BronzeLaneHalted", "BronzeRoleDown"}),
}


def stages(seconds: float, outage_s: float, seed: int) -> list[Stage]:
    """The stages of a run that takes so many seconds with its controls, and three outages of `outage_s` each."""
    chosen = random.Random(seed)
    short = 0.85 * seconds / 3600  # everything but the outages, in proportion to an hour

    def spread(length_s: float, acts: Sequence[tuple[str, Callable[[Running, Load], None]]]) -> list[Event]:
        """These, in this order, each at a random time of its own part of the stage."""
        part = length_s / (len(acts) + 1)
        return [Event(part * (i + chosen.uniform(0.3, 1)), fault, act) for i, (fault, act) in enumerate(acts)]

    api, consumer = (("API", "api"), ("consumer", "consumer"))
    restarts = [
        (f"{who} restarted", end(name, signal.SIGTERM))
        for who, name in chosen.sample([api, api, consumer, consumer], 4)
    ]
    kills = [(f"{who} killed", end(name, signal.SIGKILL)) for who, name in chosen.sample([api, consumer] * 3, 6)]
    several = [
        *[(f"{who} killed", end(f"{name}-{n}", signal.SIGKILL)) for who, name in (api, consumer) for n in (2, 3)],
        *[(f"{who} restarted", end(name, signal.SIGTERM)) for who, name in (api, consumer)],
    ]
    chosen.shuffle(several)
    gaps = [
        Event(at_s * short, fault, partial(_send_to_prometheus, number))
        for begin_s, end_s in ((10, 60), (85, 130))
        for at_s, fault, number in (
            (begin_s, "Prometheus suspended", signal.SIGSTOP),
            (end_s, "", signal.SIGCONT),
        )
    ]
    stop = signal.SIGKILL
    return [
        Stage(
            "load alone, one process of each role",
            180 * short,
            [Event(20 * short, "records that do not fit their source", nonsense)],
        ),
        Stage("graceful restarts", 150 * short, spread(150 * short, restarts)),
        Stage("kill -9 of API and consumer", 180 * short, spread(180 * short, kills)),
        Stage("Prometheus suspended twice", 150 * short, gaps),
        Stage(
            "Prometheus stopped, API and consumer killed meanwhile",
            outage_s + 90 * short,
            [
                Event(10 * short, "Prometheus stopped", lambda w, _: w.prometheus.stop()),
                Event(10 * short + outage_s * chosen.uniform(0.2, 0.4), "API killed", end("api", stop)),
                Event(10 * short + outage_s * chosen.uniform(0.5, 0.8), "consumer killed", end("consumer", stop)),
                Event(10 * short + outage_s, "", lambda w, _: w.prometheus.restart()),
            ],
        ),
        Stage(
            "three processes of each role, killed and restarted",
            180 * short,
            [Event(0, "", three), *spread(180 * short, several)],
        ),
        Stage(
            "trace store stopped, three processes",
            outage_s + 60 * short,
            [
                Event(10 * short, "trace store stopped", stop_trace_stores),
                Event(10 * short + outage_s, "", start_trace_stores),
            ],
        ),
        Stage(
            "collector stopped, three processes",
            outage_s + 90 * short,
            [
                Event(10 * short, "collector stopped", lambda w, _: w.collector.stop()),
                Event(10 * short + outage_s, "", lambda w, _: w.collector.restart()),
            ],
        ),
        Stage(
            "kill -9 of the collector, three processes",
            90 * short,
            spread(90 * short, [("collector killed", kill_collector)] * 2),
        ),
        Stage(
            "clock an hour ahead and back, of one API and one consumer of three",
            180 * short,
            [
                Event(20 * short, "API's clock an hour ahead", clock(API, HOUR_S)),
                Event(80 * short, "", clock(API, 0)),
                Event(100 * short, "consumer's clock an hour ahead", clock(CONSUMER, HOUR_S)),
                Event(160 * short, "", clock(CONSUMER, 0)),
            ],
        ),
    ]


def _send_to_prometheus(number: signal.Signals, whole: Running, load: Load) -> None:
    whole.prometheus.signal(number)


def end(name: str, number: signal.Signals) -> Callable[[Running, Load], None]:
    return lambda whole, _: whole.member(name).end(number)


def nonsense(whole: Running, load: Load) -> None:
    load.invalid += 5


def three(whole: Running, load: Load) -> None:
    for number in (2, 3):
        for role in ROLES:
            whole.add(role, number)


def stop_trace_stores(whole: Running, load: Load) -> None:
    whole.receiver.stop()
    whole.zipkin.stop()


def start_trace_stores(whole: Running, load: Load) -> None:
    whole.receiver.start()
    whole.zipkin.restart()


def kill_collector(whole: Running, load: Load) -> None:
    whole.collector.signal(signal.SIGKILL)
    whole.collector.restart()


def clock(role: str, shift_s: float) -> Callable[[Running, Load], None]:
    return lambda whole, _: Clock(whole.member(f"{role}-2").clock).set(shift_s)
