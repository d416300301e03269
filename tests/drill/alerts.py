"""The alerts of a running Prometheus over time, and which of them Alertmanager's inhibition rules silence."""

import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from local.builds import REPOSITORY
from tests.background import InThread

POLL_S = 1.0
#: This alert always fires: only its absence means something.
WATCHDOG = "Watchdog"

_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*')

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Inhibition:
    """An inhibition rule of Alertmanager. While an alert that matches `sources` fires, alerts that match `targets`, and
    have the same values of the labels `equal`, are not sent.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    equal: tuple[str, ...] = ()

    def silences(self, source: Labels, target: Labels) -> bool:
        if not _matches(target, self.targets) or not _matches(source, self.sources):
            return False
        if _matches(source, self.targets) and _matches(target, self.sources):
            return False  # as Alertmanager: an alert that is on both sides silences nothing that is, too
        return all(source.get(label, "") == target.get(label, "") for label in self.equal)


@dataclass(frozen=True)
class Routing:
    """What Alertmanager's configuration says of the alerts that it gets."""

    inhibitions: tuple[Inhibition, ...]
    #: How long an alert waits before it is sent. It is not sent if another one silences it then.
    wait_s: float

    @classmethod
    def read(cls, file: Path = REPOSITORY / "alertmanager" / "alertmanager.yaml") -> Self:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        rules = (
            Inhibition(tuple(rule["source_matchers"]), tuple(rule["target_matchers"]), tuple(rule.get("equal", ())))
            for rule in config["inhibit_rules"]
        )
        return cls(tuple(rules), float(config["route"]["group_wait"].removesuffix("s")))

    def unsilenced(self, firing: Sequence[Labels]) -> list[Labels]:
        """The firing alerts that no rule silences."""
        return [
            alert for alert in firing if not any(rule.silences(by, alert) for rule in self.inhibitions for by in firing)
        ]


def _matches(labels: Labels, matchers: Sequence[str]) -> bool:
    for matcher in matchers:
        found = _MATCHER.fullmatch(matcher)
        assert found, f"no matcher: {matcher}"
        name, operator, value = found.groups()
        has = labels.get(name, "")
        equal = bool(re.fullmatch(value, has)) if "~" in operator else has == value
        if equal is operator.startswith("!"):
            return False
    return True


@dataclass
class Course:
    """What became of the alerts with one name and severity, in seconds since the fault; None: not yet."""

    pending_s: float
    firing_s: float | None = None
    #: since when one of them fires and is not silenced; when it was sent, which is after a wait
    unsilenced_s: float | None = None
    sent_s: float | None = None
    resolved_s: float | None = None
    labels: list[Labels] = field(default_factory=list)
    url: str = ""


class Watch(InThread):
    """Reads the alerts from Prometheus until the context ends. `courses` are by name and severity."""

    def __init__(self, url: str, routing: Routing, say: Callable[[str], None]) -> None:
        self.courses: dict[tuple[str, str], Course] = {}
        #: The alerts that were pending or firing at the last look; None if Prometheus did not answer.
        self.current: list[Mapping[str, Any]] | None = None
        self.began_at = time.time()
        self._url, self._routing, self._say = url, routing, say
        self._lock = threading.Lock()

    def begin(self) -> None:
        """The fault happens now: what was seen before is forgotten, and times count from here."""
        with self._lock:
            self.courses.clear()
            self.began_at = time.time()

    def fired(self) -> set[tuple[str, str]]:
        with self._lock:
            return {key for key, course in self.courses.items() if course.firing_s is not None}

    def quiet(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Whether Prometheus answers, and no alert is pending or fires, apart from some that fire."""
        current = self.current
        return current is not None and all(
            alert["state"] == "firing" and (alert["labels"]["alertname"], alert["labels"]["severity"]) in apart_from
            for alert in current
        )

    def _run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # it restarts
        with httpx.Client(timeout=5, trust_env=False, limits=limits) as http:
            while not self._over.wait(POLL_S):
                try:
                    answer = http.get(f"{self._url}/api/v1/alerts").raise_for_status().json()
                except (httpx.HTTPError, ValueError):
                    self.current = None
                    continue
                seen = [alert for alert in answer["data"]["alerts"] if alert["labels"]["alertname"] != WATCHDOG]
                with self._lock:
                    self.record(seen, time.time())
                self.current = seen

    def record(self, seen: Sequence[Mapping[str, Any]], at: float) -> None:
        """Adds what was seen at a time."""
        after_s = at - self.began_at
        firing = [alert["labels"] for alert in seen if alert["state"] == "firing"]
        unsilenced = self._routing.unsilenced(firing)
        for alert in seen:
            labels = alert["labels"]
            key = (labels["alertname"], labels["severity"])
            if key not in self.courses:
                self.courses[key] = Course(pending_s=after_s)
                self._say(f"{after_s:5.0f} s  {' '.join(key)} is pending")
            course = self.courses[key]
            if alert["state"] != "firing":
                continue
            if course.firing_s is None:
                course.firing_s, course.url = after_s, alert["annotations"]["runbook_url"]
                self._say(f"{after_s:5.0f} s  {' '.join(key)} fires: {alert['annotations']['summary']}")
            if labels not in course.labels:
                course.labels.append(labels)
            course.resolved_s = None
        for key, course in self.courses.items():
            if not any((labels["alertname"], labels["severity"]) == key for labels in unsilenced):
                course.unsilenced_s = None
            elif course.unsilenced_s is None:
                course.unsilenced_s = after_s
            elif course.sent_s is None and after_s >= course.unsilenced_s + self._routing.wait_s:
                course.sent_s = after_s
            still = any((labels["alertname"], labels["severity"]) == key for labels in firing)
            if course.firing_s is not None and course.resolved_s is None and not still:
                course.resolved_s = after_s
                self._say(f"{after_s:5.0f} s  {' '.join(key)} has ended")
