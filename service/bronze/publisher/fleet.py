"""The invented vehicle fleet whose records `bronze simulate` sends, so that an idle system has data to show."""

import datetime as dt
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

Record = dict[str, object]

VEHICLES = 40
FAILURES_SHARE = 0.1
#: Of the trips that arrive: a failure on the way, so that results and failures share classification ids.
FAILURES_ON_THE_WAY_SHARE = 0.1
LATE_MIN = 15

_PLACES = ("BER", "CDG", "HEL", "LIS", "OSL", "PRG", "VIE", "WAW")
_MODELS: tuple[Record, ...] = (
    {"manufacturer": "Nordwerk", "model": "N-40", "engine": "electric", "engines": 2, "seats": 40},
    {"manufacturer": "Nordwerk", "model": "N-90", "engine": "turbo-prop", "engines": 2, "seats": 92},
    {"manufacturer": "Aerolab", "model": "A7", "engine": "turbo-fan", "engines": 4, "seats": 210},
)
_REASONS = {"engine": "An engine was reported.", "weather": "The weather closed in.", "crew": "The crew was missing."}


@dataclass(frozen=True, slots=True)
class _Trip:
    """One trip of a vehicle. `identification` holds the fields that all records of the trip share."""

    identification: Record
    number: int
    origin: str
    destination: str
    departed: dt.datetime
    departure_delay_min: int
    arrived: dt.datetime
    duration_min: int


def fleet(
    dice: random.Random, now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> Iterator[tuple[str, list[Record]]]:
    """Submissions without end, each a source and its records: first vehicles, then status, results and failures.

    Each trip has one status, and one result, one failure or both, with the same classification_id.
    """
    vehicles: list[Record] = [
        {"vehicle_id": f"SIM-{n:02}", "year_built": dice.randint(1995, 2024)} | dice.choice(_MODELS)
        for n in range(VEHICLES)
    ]
    for first in count(step=100):
        yield "vehicles", dice.sample(vehicles, dice.randint(2, 6))
        arrived = now()
        status: list[Record] = []
        results: list[Record] = []
        failures: list[Record] = []
        for number, vehicle in enumerate(dice.sample(vehicles, dice.randint(6, 14)), first):
            trip = _trip(dice, number, vehicle, arrived)
            status.append(_status(dice, trip))
            # the first trip fails and the second arrives, so that each source has a record
            if number == first or (number > first + 1 and dice.random() < FAILURES_SHARE):
                failures.append(_failure(dice, trip))
                continue
            results.append(_result(dice, trip))
            if dice.random() < FAILURES_ON_THE_WAY_SHARE:
                failures.append(_failure(dice, trip))
        yield "status", status
        yield "results", results
        yield "failures", failures


def _trip(dice: random.Random, number: int, vehicle: Record, arrived: dt.datetime) -> _Trip:
    origin, destination = dice.sample(_PLACES, 2)
    duration_min = dice.randint(50, 210)
    return _Trip(
        identification={
            "classification_id": f"{arrived:%Y-%m-%dT%H%M%S}-SIM-{number}-{origin}-{destination}",
            "vehicle_id": vehicle["vehicle_id"],
        },
        number=number,
        origin=origin,
        destination=destination,
        departed=arrived - dt.timedelta(minutes=duration_min),
        departure_delay_min=dice.randint(-3, 25),
        arrived=arrived,
        duration_min=duration_min,
    )


def _status(dice: random.Random, trip: _Trip) -> Record:
    return trip.identification | {
        "operator": "SIM",
        "run_number": trip.number,
        "origin": trip.origin,
        "destination": trip.destination,
        "scheduled_at": trip.departed - dt.timedelta(minutes=trip.departure_delay_min),
        "departed_at": trip.departed,
        "delay_min": trip.departure_delay_min,
        "load": round(dice.random(), 2),  # not declared
    }


def _failure(dice: random.Random, trip: _Trip) -> Record:
    reason = dice.choice(list(_REASONS))
    return trip.identification | {"reason": reason, "failed_on": trip.arrived.date(), "detail": _REASONS[reason]}


def _result(dice: random.Random, trip: _Trip) -> Record:
    arrival_delay_min = trip.departure_delay_min + dice.randint(-10, 10)
    return trip.identification | {
        "arrived_at": trip.arrived,
        "delay_min": arrival_delay_min,
        "duration_min": trip.duration_min,
        "distance_km": round(trip.duration_min * dice.uniform(8, 13), 1),
        "on_time": arrival_delay_min < LATE_MIN,
    }
