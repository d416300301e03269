"""`bronze` without the data monitors, to compare with: `python -m benchmarks.unmonitored consumer`."""

from bronze.__main__ import main
from bronze.consumer.monitors import Monitors
from bronze.objects import measurements


def _count_nothing(*_: object) -> None:
    pass


if __name__ == "__main__":
    measurements.FIELDS_MAX = 0
    Monitors.add = Monitors.report = _count_nothing  # type: ignore[method-assign, assignment]
    main()
