"""A fleet that does not exist: what `bronze simulate` sends, so that an idle system has something to show."""

import datetime as dt
import random
from collections.abc import Callable, Iterator
from itertools import count

Record = dict[str, object]

VEHICLES = 40
FAILURES_SHARE = 0.1
LATE_MIN = 15

_PLACES = ("BER", "CDG", "HEL", "LIS", "OSL", "PRG", "VIE", "WAW")
_MODELS: tuple[Record, ...] = (
    {"manufacturer": "Nordwerk", "model": "N-40", "engine": "electric", "engines": 2, "seats": 40},
    {"manufacturer": "Nordwerk", "model": "N-90", "engine": "turbo-prop", "engines": 2, "seats": 92},
    {"manufacturer": "Aerolab", "model": "A7", "engine": "turbo-fan", "engines": 4, "seats": 210},
)
_REASONS = {"engine": "An engine was reported.", "weather": "The weather closed in.", "crew": "The crew was missing."}


def fleet(
    dice: random.Random, now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> Iterator[tuple[str, list[Record]]]:
    """Its submissions, without end: some of its vehicles, then some runs: their status, results and failures.

    Each run has one status and either one result or one failure, of the same classification_id.
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
            origin, destination = dice.sample(_PLACES, 2)
            run: Record = {
                "classification_id": f"{arrived:%Y-%m-%dT%H%M%S}-SIM-{number}-{origin}-{destination}",
                "vehicle_id": vehicle["vehicle_id"],
            }
            under_way_min = dice.randint(50, 210)
            departed = arrived - dt.timedelta(minutes=under_way_min)
            departed_late_min = dice.randint(-3, 25)
            status.append(
                run
                | {
                    "operator": "SIM",
                    "run_number": number,
                    "origin": origin,
                    "destination": destination,
                    "scheduled_at": departed - dt.timedelta(minutes=departed_late_min),
                    "departed_at": departed,
                    "delay_min": departed_late_min,
                    "load": round(dice.random(), 2),  # not declared
                }
            )
            # the first fails and the second arrives: no source is left out
            if number == first or (number > first + 1 and dice.random() < FAILURES_SHARE):
                reason = dice.choice(list(_REASONS))
                failures.append(run | {"reason": reason, "failed_on": arrived.date(), "detail": _REASONS[reason]})
            else:
                arrived_late_min = departed_late_min + dice.randint(-10, 10)
                results.append(
                    run
                    | {
                        "arrived_at": arrived,
                        "delay_min": arrived_late_min,
                        "duration_min": under_way_min,
                        "distance_km": round(under_way_min * dice.uniform(8, 13), 1),
                        "on_time": arrived_late_min < LATE_MIN,
                    }
                )
        yield "status", status
        yield "results", results
        yield "failures", failures
