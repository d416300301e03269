"""What each tile of the overview may and has to show, by independent readings. Here, and only here, tiles have their
titles.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bronze.objectives import DURATION_S_MAX
from prometheus.verdict import Part
from tests.incidents.readings import LATE_S, Readings
from tests.tiles import Shown

#: What is wrong for so long has to be seen.
SEEN_S_MAX = 30
#: What was wrong may be red for so long: it is judged by the last minute, and metrics arrive later.
RED_AFTER_S_MAX = 75
#: And yellow: five minutes more than that.
YELLOW_AFTER_S_MAX = 375
#: A number is true if it was at some time in so many last seconds.
LAG_S = 20
#: The age of the oldest submission is known once per second.
AGE_ERROR_S = 1
#: How long a look may take.
LOOK_S_MAX = 5
#: What a killed process has counted since its last export, in seconds.
LOST_S = 10
#: An upload includes the encoding of its object, which the proxy does not see. On a busy machine it takes long.
ENCODE_S_MAX = 0.3
#: The share of slow uploads and deliveries of which p95 is red, and how far a tile may be from it.
SLOW_SHARE, SHARE_ERROR = 0.05, 0.01

_UNFINISHED = "not ended yet"

#: What the senders send in two seconds.
SENT = 40

TITLES = {"Ingest": Part.INGEST, "Queue": Part.QUEUE, "Upload": Part.UPLOAD, "Telemetry": Part.TELEMETRY}


@dataclass(frozen=True)
class Look:
    """The tiles at a time, by title, and the pages that fire, by Prometheus' list of alerts."""

    at: float
    tiles: Mapping[str, Shown]
    pages: frozenset[str]


@dataclass(frozen=True)
class Moment:
    """A look, those before it, and what was true then."""

    readings: Readings
    looks: Sequence[Look]
    #: a look takes time, in which a verdict may change
    next_look: Look | None = None

    @property
    def at(self) -> float:
        return self.looks[-1].at

    def last(self, numbers: Sequence[float], seconds: float = LAG_S) -> Sequence[float]:
        """The numbers of the last seconds, and while the look was taken."""
        second = int(self.at - self.readings.began)
        return numbers[max(0, second - int(seconds)) : second + LOOK_S_MAX + 1]

    def was_bad(self, part: Part, seconds: float) -> bool:
        late = part is Part.QUEUE and max(self.last(self.readings.oldest_s, seconds)) > LATE_S - AGE_ERROR_S
        slow = part is Part.UPLOAD and self._may_be_slow(seconds)
        started = self.at - self.readings.ready < seconds
        return late or slow or started or any(self.last(self.readings.bad[part], seconds))

    def _may_be_slow(self, seconds: float) -> bool:
        """The proxy does not see how long the consumer encodes and waits for a processor. A delivery includes it."""
        return any(
            duration_s > DURATION_S_MAX and self.at - seconds - LOOK_S_MAX < end <= self.at
            for end, duration_s in self.readings.deliveries
        )

    def is_bad(self, part: Part) -> bool:
        """For long enough that it has to be seen, and not about to end."""
        second = int(self.at - self.readings.began)
        bad = self.readings.bad[part][max(0, second - SEEN_S_MAX) : second + LOOK_S_MAX + 1]
        return len(bad) > SEEN_S_MAX and all(bad)

    @property
    def knows(self) -> bool:
        """Whether metrics arrive."""
        return not self.was_bad(Part.TELEMETRY, 2 * SEEN_S_MAX)

    def counted(self, ends: Sequence[float], seconds: float = LAG_S) -> tuple[int, int]:
        """How many there were some seconds ago, and now."""
        return sum(end <= self.at - seconds for end in ends), sum(end <= self.at + LOOK_S_MAX for end in ends)

    def lost(self, of: str) -> int:
        """What a process may have lost for each thing that it counts per second: it was killed so often."""
        return LOST_S * sum(what == of and began <= self.at for what, began, _ in self.readings.faults)


Claim = Callable[[Moment, Shown], str]


def _part(part: Part) -> Claim:
    def claim(moment: Moment, shown: Shown) -> str:
        if shown.colour == "purple":
            return "" if not moment.knows and part is not Part.TELEMETRY else "says not known, although metrics arrive"
        if shown.colour == "red":
            return "" if moment.was_bad(part, RED_AFTER_S_MAX) else f"is red ({shown.text}) without a reason"
        if moment.is_bad(part):
            return f"is {shown.colour} ({shown.text}), and it was bad for {SEEN_S_MAX} s"
        if shown.colour == "yellow" and not moment.was_bad(part, YELLOW_AFTER_S_MAX):
            return "" if _is_warned(moment, part) else f"is yellow ({shown.text}) without a reason"
        return ""

    return claim


def _is_warned(moment: Moment, part: Part) -> bool:
    """Whether there is what a warning is for: uploads take more than half of the limit."""
    recent = [s for end, s in moment.readings.writes if moment.at - RED_AFTER_S_MAX < end <= moment.at]
    return part is Part.UPLOAD and max(recent, default=0) > DURATION_S_MAX / 2


def _urgent(moment: Moment, shown: Shown) -> str:
    named = set(shown.values) - {"none", "none yet"}
    listed = [look.pages for look in moment.looks[-3:]]
    if named <= frozenset.union(*listed) and named >= frozenset.intersection(*listed):
        return ""
    return f"names {sorted(named)}, and {sorted(listed[-1])} fire"


def _oldest(moment: Moment, shown: Shown) -> str:
    if shown.text == "not known":
        known = moment.knows and not moment.was_bad(Part.QUEUE, 2 * SEEN_S_MAX)
        return "is not known, although the consumer reports" if known else ""
    ages = moment.last(moment.readings.oldest_s, 2 * LAG_S)
    if not moment.knows:
        return ""
    if min(ages) > LATE_S and len(ages) > SEEN_S_MAX and shown.colour != "red":
        return f"is {shown.colour} ({shown.text}), and the oldest waits {ages[-1]:.0f} s"
    if max(ages) < LATE_S - AGE_ERROR_S and shown.colour == "red":
        return f"is red ({shown.text}), and the oldest waited {max(ages):.1f} s at most"
    return _between(shown, min(ages) - 1, max(ages) + 1, "the oldest waits")


def _waiting(moment: Moment, shown: Shown) -> str:
    waiting = moment.last(moment.readings.waiting)
    if shown.text == "not known":
        known = moment.knows and not moment.was_bad(Part.INGEST, 2 * SEEN_S_MAX)
        return "is not known, although metrics arrive" if known else ""
    if not moment.knows:
        return ""
    if shown.colour == "red" and not moment.was_bad(Part.QUEUE, RED_AFTER_S_MAX):
        return "is red, and the queue was well"
    if shown.colour == "green" and moment.is_bad(Part.QUEUE) and min(waiting) > SENT:
        return f"is green, and {min(waiting):.0f} wait"
    return _between(shown, min(waiting) - SENT, max(waiting) + SENT, "wait")


def _since(moment: Moment, shown: Shown) -> str:
    red = [look.at for look in moment.looks if _is_red(look)]
    ago_s = [moment.at - at for at in red[-3:]]
    if shown.text == "ongoing":
        soon = moment.next_look is not None and _is_red(moment.next_look)
        return "" if soon or min(ago_s, default=math.inf) <= LAG_S else "says ongoing, and no verdict is red"
    if not red:  # before the first look, the system started
        return ""
    if not shown.values or shown.text.startswith("none "):
        return "knows of no incident"
    return _between(shown, min(ago_s) - LAG_S, max(ago_s) + LAG_S, "the last red verdict was before")


def _is_red(look: Look) -> bool:
    return any(look.tiles[title].colour == "red" for title in TITLES)


def _count(counts: Callable[[Moment], tuple[float, float]], series: str = "") -> Claim:
    def claim(moment: Moment, shown: Shown) -> str:
        low, high = counts(moment)
        if series:
            shown = Shown({k: v for k, v in shown.values.items() if k == series}, shown.text, shown.colours)
        return _between(shown, low if moment.knows else 0, high, "are true")

    return claim


def _uploads(moment: Moment) -> tuple[float, float]:
    low, high = moment.counted([put.ended for put in moment.readings.uploads])
    return low, high


def _failed(moment: Moment, shown: Shown) -> str:
    low, high = moment.counted([put.ended for put in moment.readings.failures])
    lost = moment.lost("consumer")
    if low - lost > 0 and shown.colour == "green" and moment.knows:
        return f"is green, and {low} failed"
    if high + lost == 0 and shown.colour in {"yellow", "red"}:
        return f"is {shown.colour} ({shown.text}), and none failed"
    return _between(shown, (low - lost) * moment.knows, high + lost, "failed")


def _requests(moment: Moment) -> tuple[float, float]:
    low, high = moment.counted([a.ended for a in moment.readings.attempts if a.status])
    return low - 5 * moment.lost("api"), high


def _refused(moment: Moment) -> tuple[float, float]:
    ends = [a.ended for a in moment.readings.attempts if a.status >= 400 for _ in range(a.records)]
    return moment.counted(ends)


def _share(of: Callable[[Readings], Sequence[tuple[float, float]]], limit_s: float) -> Claim:
    """A percentile: it is red if too large a share took longer than the limit."""

    def claim(moment: Moment, shown: Shown) -> str:
        if not moment.knows:
            return ""
        if _UNFINISHED in shown.values:
            return _unfinished(moment, shown)
        shares = []
        for before_s in range(-LOOK_S_MAX, LAG_S, LOOK_S_MAX):
            durations = [seconds for end, seconds in of(moment.readings) if end <= moment.at - before_s]
            shares.append(sum(seconds > limit_s for seconds in durations) / max(1, len(durations)))
        if min(shares) > SLOW_SHARE + SHARE_ERROR and shown.colour != "red":
            return f"is {shown.colour} ({shown.text}), and {min(shares):.1%} took over {limit_s:g} s"
        if max(shares) < SLOW_SHARE - SHARE_ERROR and shown.colour == "red":
            return f"is red ({shown.text}), and {max(shares):.1%} took over {limit_s:g} s"
        return ""

    return claim


def _unfinished(moment: Moment, shown: Shown) -> str:
    """Beside what has ended, a tile shows for how long something goes on that is over its limit."""
    ages = moment.last(moment.readings.oldest_s, 2 * LAG_S)
    only = Shown({"": shown.values[_UNFINISHED]}, shown.text, shown.colours)
    return _between(only, min(ages) - AGE_ERROR_S - DURATION_S_MAX, max(ages) + AGE_ERROR_S, "is the oldest")


def _mean(moment: Moment, shown: Shown) -> str:
    means = []
    for before_s in range(-LOOK_S_MAX, LAG_S, LOOK_S_MAX):
        durations = [s for end, s in moment.readings.writes if end <= moment.at - before_s]
        means.append(math.fsum(durations) / max(1, len(durations)))
    if not moment.knows or not shown.values:
        return ""
    if _UNFINISHED in shown.values:
        return _unfinished(moment, shown)
    return _between(shown, min(means) * 0.9 - 0.02, max(means) * 1.1 + ENCODE_S_MAX, "s is the mean")


def _missing(moment: Moment, shown: Shown) -> str:
    return _between(shown, 0, 0, "are missing") if shown.values else ""


def _between(shown: Shown, low: float, high: float, what: str) -> str:
    if not shown.values:
        return ""
    value = math.fsum(shown.values.values())
    return "" if low <= value <= high else f"shows {value:.6g}, and {low:.4g} to {high:.4g} {what}"


CLAIMS: Mapping[str, Claim] = {
    **{title: _part(part) for title, part in TITLES.items()},
    "Urgent alerts": _urgent,
    "Oldest waiting message": _oldest,
    "Records that wait now": _waiting,
    "Since the last incident": _since,
    "Successful uploads": _count(_uploads),
    "Failed uploads": _failed,
    "Mean upload": _mean,
    "Requests": _count(_requests, "submissions"),
    "p95 upload": _share(lambda readings: readings.writes, DURATION_S_MAX),
    "p95 delivery": _share(lambda readings: readings.deliveries, LATE_S),
    "Missing data": _missing,
    "Refused records": _count(_refused),
}


def lies(readings: Readings, looks: Sequence[Look]) -> list[tuple[float, str, str]]:
    """Each time at which a tile showed what was not true: the time, its title, and why."""
    found = []
    for number, look in enumerate(looks, 1):
        moment = Moment(readings, looks[:number], looks[number] if number < len(looks) else None)
        for title, claim in CLAIMS.items():
            if title in look.tiles and (why := claim(moment, look.tiles[title])):
                found.append((look.at, title, why))
    return found
