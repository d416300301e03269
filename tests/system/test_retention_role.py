"""`bronze retain --every` as a process: it reports its runs, its account may change tables, and it stops at once."""

import subprocess
import sys
import time

from pyiceberg.catalog import Catalog

from local.machine import limit_s
from local.programs import Process, environment
from tests.system.blackbox import System, ndjson, until, vehicles
from tests.system.test_shutdown import stops
from tests.system.test_tables import catalog, namespace, rows, table

__all__ = ["catalog", "table"]

LAST_RUN = "bronze_retention_last_run_time_seconds"
COMPACT = (sys.executable, "-m", "bronze", "table", "compact", "--older-than", "0", "--source", "vehicles", "--yes")


def test_it_reports_a_run_changes_tables_and_stops(system: System, catalog: Catalog, table: Process, mark: str) -> None:
    """Young objects stay. A compaction with its account shows that it could delete old rows."""
    ids = []
    for number in range(2):
        ids.append(system.post("vehicles", ndjson(vehicles(f"{mark}-{number}"))).json()["submission_id"])
        until("its row is in the table", lambda: rows(system, catalog, ids[-1]))
    program = system.role("retain", BRONZE_RETENTION_DAYS="1", BRONZE_TABLE_NAMESPACE=namespace(system))
    with system.running(program) as running:
        until("a run is complete", lambda: system.metrics("retain").all(LAST_RUN, bronze_outcome="success"))
        assert system.metrics("retain").sum("bronze_retention_runs_total") == 1
        assert system.metrics("retain").sum("bronze_retention_objects_total") == 0
        reported = f'{LAST_RUN}{{job="bronze/retain", bronze_outcome="success"}}'
        assert time.time() - until("Prometheus has it", lambda: system.value(reported)) < limit_s(120)
        env = {**environment(), **program.env}
        done = subprocess.run(COMPACT, env=env, capture_output=True, text=True, timeout=limit_s(60), check=False)
        assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
        assert "0 objects deleted. 0 rows of tables deleted." in system.log("retain").read_text()
        stops(running["retain"])
    for submission_id in ids:
        assert rows(system, catalog, submission_id)
        assert system.stored(submission_id)["objects"]
