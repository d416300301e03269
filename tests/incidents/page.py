"""The results of incidents, and the page that is made from them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.incidents.claims import CLAIMS, TITLES, Look
from tests.incidents.faults import Incident
from tests.incidents.numbers import Number
from tests.incidents.readings import Readings
from tests.prove import service

RESULTS, PAGE = "incidents.jsonl", "incidents.md"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What a run saw. It is saved, so that it can be judged once more."""

    readings: Readings
    looks: Sequence[Look]
    errors: Sequence[str]
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Course:
    """When a tile had a colour: seconds from the begin of the incident until it first had it, the first text, and
    seconds from the end of the incident until it had it last, below 0 if before.
    """

    tile: str
    colour: str
    first_s: int
    last_s: int
    text: str


@dataclass(frozen=True)
class Result:
    incident: str
    fault: str
    seconds: int
    problems: tuple[str, ...]
    courses: tuple[Course, ...]
    #: what was true, by the independent readings
    facts: Mapping[str, float]
    #: seconds from the begin of the incident until a part was bad for the first time, and for the last
    bad_s: Mapping[str, tuple[int, int]]
    looks: int
    numbers: tuple[Number, ...]
    ended: str
    code: str


def result(
    incident: Incident,
    lies: Sequence[tuple[float, str, str]],
    seen: Seen,
) -> Result:
    readings, looks = seen.readings, seen.looks
    ((_, began, ended),) = [fault for fault in readings.faults if fault[0] == "incident"]
    courses = [
        course
        for title in CLAIMS
        for colour in ("red", "yellow", "purple")
        if (course := _course(looks, title, colour, began, ended))
    ]
    red = {TITLES[course.tile] for course in courses if course.colour == "red" and course.tile in TITLES}
    problems = [f"{part} did not turn red" for part in sorted(incident.red - red)]
    problems += _summed(lies, began)
    problems += seen.errors
    problems += [f"{n.panel}, {n.series}: shows {n.shown}, true is {n.true:.6g}" for n in seen.numbers if not n.holds]
    if absent := CLAIMS.keys() - looks[-1].tiles.keys():
        problems.append(f"the board has no {', '.join(sorted(absent))}")
    return Result(
        incident.name,
        incident.fault,
        round(ended - began),
        tuple(problems),
        tuple(courses),
        _facts(readings, began, ended),
        _bad(readings, began),
        len(looks),
        tuple(seen.numbers),
        datetime.now(UTC).isoformat(timespec="seconds"),
        service(),
    )


def _course(looks: Sequence[Look], title: str, colour: str, began: float, ended: float) -> Course | None:
    """From the begin of the incident on."""
    has = [look for look in looks if look.at >= began and title in look.tiles and colour in look.tiles[title].colours]
    if not has:
        return None
    return Course(title, colour, round(has[0].at - began), round(has[-1].at - ended), has[0].tiles[title].text)


def _summed(lies: Sequence[tuple[float, str, str]], began: float) -> list[str]:
    """One line for each tile, with the first time."""
    times = Counter(title for _, title, _ in lies)
    first: dict[str, tuple[float, str]] = {}
    for at, title, why in lies:
        first.setdefault(title, (at, why))
    return [
        f"{title}, {at - began:+.0f} s: {why}" + (f" ({times[title]} looks)" if times[title] > 1 else "")
        for title, (at, why) in first.items()
    ]


def _facts(readings: Readings, began: float, ended: float) -> Mapping[str, float]:
    """During the incident, and until all is in the bucket."""
    during = [a for a in readings.attempts if began <= a.ended <= ended]
    second = int(began - readings.began)
    puts = [put for put in readings.puts if put.ended >= began and put.began <= ended]
    accepted = {a.submission_id for a in readings.accepted if a.ended < readings.ended - 60}
    return {
        "accepted": sum(a.status == 202 for a in during),
        "failed": sum(a.failed for a in during),
        "refused": sum(400 <= a.status < 500 for a in during),
        "uploads": sum(put.succeeded for put in puts),
        "uploads_failed": sum(put.failed for put in puts),
        "slowest_upload_s": round(max((put.seconds for put in puts if put.succeeded), default=0), 1),
        "oldest_s": round(max(readings.oldest_s[second:], default=0), 1),
        "lost": len(accepted - readings.stored.keys()),
    }


def _bad(readings: Readings, began: float) -> Mapping[str, tuple[int, int]]:
    second, found = int(began - readings.began), {}
    for part, bad in readings.bad.items():
        if any(bad[second:]):
            seconds = [at for at, is_bad in enumerate(bad[second:]) if is_bad]
            found[part.value] = (seconds[0], seconds[-1])
    return found


def read(docs: Path) -> dict[str, Result]:
    """The results by incident."""
    file, found = docs / RESULTS, {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        of = json.loads(line)
        lists = {
            "problems": tuple(of["problems"]),
            "courses": tuple(Course(**course) for course in of["courses"]),
            "bad_s": {part: tuple(seconds) for part, seconds in of["bad_s"].items()},
            "numbers": tuple(Number(**number) for number in of["numbers"]),
        }
        found[of["incident"]] = Result(**{**of, **lists})
    return found


def write(docs: Path, results: Iterable[Result], order: Sequence[str]) -> None:
    """Replaces the results of these incidents, and writes the page."""
    kept = read(docs) | {result.incident: result for result in results}
    ordered = [kept[name] for name in order if name in kept]
    lines = (json.dumps(asdict(result)) + "\n" for result in ordered)
    (docs / RESULTS).write_text("".join(lines), encoding="utf-8")
    (docs / PAGE).write_text(written(ordered), encoding="utf-8")


# --- the page


def written(results: Sequence[Result]) -> str:
    incidents = [result for result in results if not result.numbers]
    numbers = [number for result in results for number in result.numbers]
    return "\n\n".join(
        [
            _INTRODUCTION,
            _summary(results),
            _HEAD + _rows(map(_row, incidents)),
            _FACTS_HEAD + _rows(map(_true, results)),
            _PROBLEMS + ("\n".join(_problems(results)) or "Nothing."),
            _NUMBERS + _rows(map(_number, numbers)) + "\n",
        ]
    )


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _summary(results: Sequence[Result]) -> str:
    failed = sum(bool(result.problems) for result in results)
    looks = sum(result.looks for result in results)
    days = sorted({result.ended[:10] for result in results})
    return (
        f"{len(results)} runs on {' to '.join(days[:1] + days[1:][-1:])}, {looks * len(CLAIMS):,} looks at a tile; "
        + (f"in {failed} of the runs, something was not true: see below." if failed else "no tile lied.")
    )


def _row(result: Result) -> tuple[str, ...]:
    red = [c for c in result.courses if c.colour == "red"]
    return (
        result.incident,
        result.fault,
        f"{result.seconds} s",
        "; ".join(_turned(c) for c in red if c.tile in TITLES) or "none",
        "; ".join(_turned(c) for c in result.courses if c.colour == "purple") or "none",
        "; ".join(_turned(c) for c in red if c.tile not in TITLES) or "none",
        _over(result),
    )


def _turned(course: Course) -> str:
    says = course.tile in TITLES or course.colour == "purple"
    return f"*{course.tile}* after {course.first_s} s" + (f" ({course.text})" if says else "")


def _over(result: Result) -> str:
    """When the verdicts were last red, and last yellow."""
    last = {
        colour: max((c.last_s for c in result.courses if c.colour == colour and c.tile in TITLES), default=None)
        for colour in ("red", "yellow")
    }
    return ", ".join(f"{colour} until {at:+d} s" for colour, at in last.items() if at is not None) or "always green"


def _true(result: Result) -> tuple[str, ...]:
    f = result.facts
    return (
        result.incident,
        "; ".join(f"*{part.capitalize()}* {first} to {last} s" for part, (first, last) in result.bad_s.items())
        or "none",
        f"{f['accepted']:,}, {f['failed']:,}, {f['refused']:,}",
        f"{f['uploads']:,}, {f['uploads_failed']:,}",
        f"{f['slowest_upload_s']:g} s",
        f"{f['oldest_s']:g} s",
        f"{f['lost']:,}",
    )


def _problems(results: Sequence[Result]) -> Iterable[str]:
    return (f"- {result.incident}: {problem}" for result in results for problem in result.problems)


def _number(number: Number) -> tuple[str, ...]:
    unknown = number.shown is None
    return (
        number.dashboard.removeprefix("bronze-"),
        number.panel,
        number.series.removesuffix(" 0") or "",
        "none" if unknown else _rounded(number.shown or 0),
        _rounded(number.true),
        number.by,
        "yes" if number.holds else "**no**",
    )


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


_INTRODUCTION = """\
<!-- Generated by `make incidents` from docs/incidents.jsonl. -->

# Incidents, and what the dashboards showed

`make incidents` causes one incident at a time in a whole system: the programs of `make up` on free ports, four senders
with one submission per second each, and the canary. Every 5 s it evaluates the tiles of *Bronze overview* as Grafana
does: their own queries at the default time range (30 minutes), their own thresholds and value mappings. Afterwards it
compares each look with readings that no telemetry is part of: what the senders were answered and how long it took,
each PutObject as a proxy before the bucket saw it, the rows of the bucket's objects by submission, and the times of
the fault. The statements are in `tests/incidents/claims.py`; a verdict lies if

- it is not red although its part was bad, without a pause, for 30 s: requests failed or took over 2 s; a submission
  waited over flush age + 2 s, or no consumer ran; uploads failed, took over 2 s, or none ended while submissions were
  late; no metrics arrived;
- it is red although its part was well for the last 75 s, yellow although it was well for 375 s, or not known
  although metrics arrive.

Each number must have been true within the last 20 s, and each other colour must agree with its number. The mean upload
may be up to 0.3 s above what the proxy saw, since the proxy does not see the encoding.

`make incidents CASE=bucket-away` causes one, `make incidents CASE=--list` lists them, `CASE=--new` continues a set
that was interrupted, `CASE=--judge` judges what the last runs saw once more. Each replaces its results here."""

_HEAD = """\
## Which tile turned red, and after how many seconds

- *Red*, *not known*: the verdicts, in seconds from the begin of the incident until the first look that showed it, with
  the text of the tile. The dashboard refreshes every 10 s, which is not included.
- *Other tiles*: those that were red from then on. A tile of the range stays red as long as the range has the incident.
- *Over*: the last look with a red and with a yellow verdict, in seconds from the end of the incident. On a machine
  that is busy with something else, uploads over 2 s may follow; then a later red is true.

| incident | what happened | lasted | red | not known | other tiles | over |
|---|---|---|---|---|---|---|
"""

_FACTS_HEAD = """\
## What was true meanwhile

By the readings. *Bad*: from when until when, in seconds from the begin of the incident, a part was not well, perhaps
with pauses. *Lost* are submissions with a 202 that were in no object at the end.

| incident | bad | submissions: accepted, failed, refused | uploads, failed attempts | slowest | longest wait | lost |
|---|---|---|---|---|---|---|
"""

_PROBLEMS = """\
## What did not hold

"""

_NUMBERS = """\
## Each number against an independent reading

A run without an incident. Tiles are read at the end, when all is stored. For a graph of counts, all its points are
added; of other graphs, the mean of its points while the load was steady is compared. A percentile holds if it is in
the bucket of the true one. *Queue depth* and *Age of the oldest message*, which are sampled once per export, may differ
by 1.

| board | panel | series | shows | is | by | holds |
|---|---|---|---|---|---|---|
"""
