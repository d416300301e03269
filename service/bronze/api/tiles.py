"""The tiles of the page: the verdict on each part of the system, and figures. Each red one leads to the runbook."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bronze.api.formats import format_duration
from bronze.api.glance import Glance
from bronze.objectives import DURATION_S_MAX

#: The parts of the system, in the order in which data passes them.
PARTS = ("ingest", "queue", "upload", "telemetry")
#: The rating of a verdict, by the hundreds of its number.
_RATINGS = ("good", "fair", "bad", "unknown")
_WORDS = ("OK", "warning", "failing", "not known")


@dataclass(frozen=True, slots=True)
class Tile:
    """A value with a note. `rating` is `good`, `fair`, `bad`, `unknown`, or empty if there is no limit; it selects the
    colour. `alert` has the entry of the runbook that says what to do.
    """

    name: str
    value: str
    note: str
    rating: str = ""
    alert: str = ""


@cache
def _verdicts() -> Mapping[str, Mapping[str, str]]:
    """The meaning of each verdict by its number. `python -m prometheus.rules` writes the file."""
    text = resources.files("bronze.api").joinpath("verdicts.json").read_text(encoding="utf-8")
    meanings: Mapping[str, Mapping[str, str]] = json.loads(text)
    return meanings


def verdict_tiles(glance: Glance) -> list[Tile]:
    """The verdict on each part; none if Prometheus records no verdicts."""
    return [verdict_tile(part.capitalize(), glance.verdicts.get(part)) for part in PARTS if glance.verdicts]


def verdict_tile(name: str, number: float | None) -> Tile:
    """A verdict: `failing: no API answers` is the value `failing` with a note."""
    if number is None:
        return Tile(name, "-", "not reported")
    if number == 0:
        return Tile(name, "OK", "now, and in the last five minutes", "good")
    meaning = _verdicts().get(f"{number:.0f}")
    if meaning is None:
        return Tile(name, "-", "the rules are of another version")
    level = int(number) // 100
    word, separator, reason = meaning["text"].partition(": ")
    value, note = (word, reason) if separator else (_WORDS[level], word)
    return Tile(name, value, note, _RATINGS[level], meaning["alert"])


def tiles(glance: Glance) -> list[Tile]:
    """The figures, in the order of the dashboards' first row."""
    oldest = glance.queue_oldest_age_s
    return [
        _count_tile("Successful uploads", glance.uploads, "objects written"),
        _zero_tile("Failed uploads", glance.failures, "attempts; each is retried", "BronzeUploadAttemptsFail"),
        _objective_tile("p95 upload", glance.upload_p95_s, DURATION_S_MAX, "BronzeUploadsSlow"),
        _objective_tile("p95 delivery", glance.delivery_p95_s, glance.delivery_objective_s, "BronzeDeliveriesLate"),
        _count_tile("Records stored", glance.stored, f"in all; and {glance.quarantined or 0:,.0f} in quarantine"),
        _zero_tile(
            "Objects and messages missing", glance.missing, "in the bucket; in the queue", "BronzeRecordsMissing"
        ),
        _count_tile(
            "Messages in the queue",
            glance.queue_depth,
            "not reported" if oldest is None else f"the oldest for {format_duration(oldest)}",
        ),
    ]


def _count_tile(name: str, value: float | None, note: str) -> Tile:
    return Tile(name, "-", "not reported") if value is None else Tile(name, f"{value:,.0f}", note)


def _zero_tile(name: str, value: float | None, note: str, alert: str) -> Tile:
    """A count that should be 0."""
    if value is None:
        return Tile(name, "-", "not reported")
    return Tile(name, f"{value:,.0f}", note, "bad" if value else "good", alert)


def _objective_tile(name: str, value_s: float | None, objective_s: float | None, alert: str) -> Tile:
    """A duration that should be within an objective."""
    if value_s is None:
        return Tile(name, "-", "no data in the last hour")
    if objective_s is None:
        return Tile(name, format_duration(value_s), "the objective is not reported")
    met = value_s <= objective_s
    return Tile(
        name,
        format_duration(value_s),
        f"{'within' if met else 'over'} the objective of {objective_s:g} s",
        "good" if met else "bad",
        alert,
    )
