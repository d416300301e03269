"""`bronze table` is killed while its table grows and compactions run beside it: each row is in the table once.

BRONZE_TABLE_SEED sets the seed of the times, BRONZE_TABLE_KILLS how often it is killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

from pyiceberg.catalog import Catalog

from local.machine import limit_s
from tests.system.blackbox import System, ndjson, until, vehicles
from tests.system.test_tables import catalog, namespace

__all__ = ["catalog"]

SEED = int(os.environ.get("BRONZE_TABLE_SEED", "1"))
KILLS = int(os.environ.get("BRONZE_TABLE_KILLS", "1"))
#: Submissions are sent while it is down, and up to so many before it is killed again.
DOWN, POSTS = 2, 6
COMPACT = (sys.executable, "-m", "bronze", "table", "compact", "--older-than", "0", "--source", "vehicles")


class Compactions:
    """Commands that compact the table, one after the other, in a thread."""

    def __init__(self, env: dict[str, str]) -> None:
        self.replaced = 0
        self.outcomes: Counter[int] = Counter()
        self.errors: list[str] = []
        self._env = env
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            done = subprocess.run(
                [*COMPACT, "--json", "--yes"],
                env=self._env,
                capture_output=True,
                text=True,
                timeout=limit_s(120),
                check=False,
            )
            self.outcomes[done.returncode] += 1
            if done.returncode == 0:
                self.replaced += json.loads(done.stdout)["files"]
            elif done.returncode != 1:  # other commits came first each time
                self.errors.append(done.stderr)


def test_each_row_is_in_the_table_once(
    system: System, catalog: Catalog, mark: str, record_property: Callable[[str, object], None]
) -> None:
    chosen, sent = random.Random(SEED), Counter[tuple[str, int]]()
    own = f"{namespace(system)}_kills"
    program = system.role("table", BRONZE_TABLE_NAMESPACE=own, BRONZE_TABLE_INTERVAL_S="0.1")

    def send() -> None:
        rows = chosen.randrange(1, 4)
        answer = system.post("vehicles", ndjson(vehicles(f"{mark}-{len(sent)}", rows)))
        assert answer.status_code == 202, answer.text
        sent.update((answer.json()["submission_id"], number) for number in range(rows))

    def found() -> Counter[tuple[str, int]]:
        """The rows of this test: the table has those of others, too."""
        if not catalog.table_exists((own, "vehicles")):
            return Counter()
        columns = ("_submission_id", "_record_index")
        rows = catalog.load_table((own, "vehicles")).scan(selected_fields=columns).to_arrow()
        ids = {submission_id for submission_id, _ in sent}
        pairs = zip(*(rows[name].to_pylist() for name in columns), strict=True)
        return Counter(pair for pair in pairs if pair[0] in ids)

    env = {**system.client_env, "BRONZE_TABLE_NAMESPACE": own}
    with system.running(program) as processes, Compactions(env) as beside:
        send()
        until("the table has rows", found)
        for _ in range(KILLS):
            if chosen.random() < 0.8:  # else perhaps before its first commit
                rows = found().total()
                send()
                until("it commits", lambda rows=rows: found().total() > rows)  # type: ignore[misc]
            for _ in range(chosen.randrange(POSTS)):
                send()
            processes["table"].signal(signal.SIGKILL)
            for _ in range(DOWN):
                send()
            processes["table"].restart()
        until("all rows are in the table", lambda: found().keys() == sent.keys(), timeout_s=120)
        before = beside.outcomes.total()
        until("another compaction has ended", lambda: beside.outcomes.total() > before + 1, timeout_s=120)
    assert found() == sent
    assert beside.errors == []
    snapshots = catalog.load_table((own, "vehicles")).snapshots()
    record_property("kills of bronze table", KILLS)
    record_property("rows", sent.total())
    record_property("snapshots", len(snapshots))
    record_property("compactions", beside.outcomes[0])
    record_property("files replaced by them", beside.replaced)
    record_property("compactions that lost each time", beside.outcomes[1])
