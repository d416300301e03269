"""What somebody looks for in a panel of upload durations, the slowest upload, is stored as an exemplar."""

import random
import time
from collections.abc import Mapping
from typing import Any

import pytest

from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Outcome, attribute
from tests.pipeline.emitter import SOURCE, Emitter
from tests.pipeline.rig import Rig, address
from tests.pipeline.test_layers_deliver import get
from tests.system.blackbox import until

WINDOWS = 100
#: Exports of metrics in a window. Five minutes have 150; more of them change nothing, because the slowest upload of a
#: window is the slowest of its interval between two exports, too.
INTERVALS = 5
UPLOADS_MAX = 20
SHARE_MIN = 0.99
SUCCESS = {attribute.bronze_source: SOURCE, attribute.bronze_outcome: Outcome.SUCCESS}
UPLOADS = registry().metrics["bronze.upload.duration"].prometheus_name


@pytest.mark.parametrize("layer", ["metrics/prometheus", "metrics/prometheus-remote-write"])
def test_the_slowest_upload_of_a_window_is_an_exemplar(layer: str, rig: Rig) -> None:
    """In 99 % of windows, as stored by Prometheus, which refuses exemplars that are out of order or repeated."""
    chance = random.Random(7)
    slowest: dict[int, str] = {}
    uploads = 0
    env = {
        "PROMETHEUS_OTLP_ENDPOINT": f"{rig.prometheus}/api/v1/otlp",
        "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"{rig.prometheus}/api/v1/write",
    }
    began = time.time()
    with rig.collector(layer, env=env) as collector, Emitter(f"slowest by {layer}", address(collector)) as sent:
        for window in range(WINDOWS):
            longest_s = 0.0
            for _ in range(INTERVALS):
                for _ in range(chance.randint(1, UPLOADS_MAX)):
                    duration_s = chance.lognormvariate(-2, 1)
                    with sent.span("upload") as trace:
                        sent.telemetry.instruments.upload_duration.record(duration_s, SUCCESS)
                    if duration_s > longest_s:
                        longest_s, slowest[window] = duration_s, trace
                    uploads += 1
                for reader in sent.telemetry._readers:
                    reader.force_flush()

        def stored() -> set[str]:
            query = f'{UPLOADS}_bucket{{instance="{sent.instance}"}}'
            found: list[Mapping[str, Any]] = get(
                f"{rig.prometheus}/api/v1/query_exemplars", query=query, start=began - 1, end=time.time() + 1
            )["data"]
            return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

        until("the exemplar of the last window", lambda: slowest[WINDOWS - 1] in stored())
        found = stored()
    share = sum(trace in found for trace in slowest.values()) / WINDOWS
    print(f"{layer}: {uploads} uploads, {len(found)} exemplars, the slowest in {share:.0%} of {WINDOWS} windows")  # noqa: T201
    assert share >= SHARE_MIN
