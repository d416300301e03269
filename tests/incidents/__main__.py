"""Causes incidents in a whole system, and checks what the tiles of the overview show meanwhile: `make incidents`.

Each incident has a system of its own on free ports, with steady load. Every 5 s it asks for what Grafana shows at the
default time range. Afterwards it compares that with independent readings. Each incident replaces its line in
docs/incidents.jsonl, from which docs/incidents.md is written. The exit code is 1 if a tile showed what was not true.
"""

import argparse
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx

from local.builds import REPOSITORY, Built, build_all
from local.programs import LocalError
from local.stack import Ports
from local.watch import leave_nothing
from tests.background import InThread
from tests.drill.site import Site, disjoint_ports, running
from tests.incidents import page
from tests.incidents.claims import CLAIMS, TITLES, Look, lies
from tests.incidents.faults import INCIDENTS, REST, Incident, Scene
from tests.incidents.numbers import Number, Rest, numbers, uploads_in_traces
from tests.incidents.page import Result, Seen
from tests.incidents.readings import Readings
from tests.incidents.senders import steady
from tests.pipeline.asking import Grafana
from tests.prove import service
from tests.system.blackbox import until
from tests.tiles import shown, tiles
from tests.truth.bucket import Bucket

STATE = REPOSITORY / ".local" / "incidents"
DOCS = REPOSITORY / "docs"
DASHBOARD = "bronze-overview"
PARALLEL = 2
LOOK_S = 5.0
#: Before an incident, and after it: what was red may be yellow for five minutes, and metrics arrive later.
BEFORE_S, AFTER_S = 60.0, 400.0
CALM_S_MAX = 300.0
#: After the last submission: it is stored; and the metrics have arrived.
STORED_S, SETTLED_S = 10.0, 25.0
#: A rate looks back by 20 s, at metrics that are up to 5 s old.
RATE_S = 30.0


class Looking(InThread):
    """Looks at the tiles in the context, as Grafana does when it refreshes."""

    def __init__(self, site: Site) -> None:
        self.looks: list[Look] = []
        self.errors: list[str] = []
        self._site, self._grafana = site, Grafana(site.system)
        self._tiles = [tile for tile in tiles(DASHBOARD) if tile["title"] in CLAIMS]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due += LOOK_S
            try:
                self.looks.append(self._look())
            except (AssertionError, httpx.HTTPError) as error:
                self.errors.append(f"{datetime.now(UTC):%H:%M:%S} {error}")

    def _look(self) -> Look:
        at = time.time()
        now = {tile["title"]: shown(self._grafana, DASHBOARD, tile) for tile in self._tiles}
        pages = {
            alert["labels"]["alertname"]
            for alert in self._site.system.prometheus("alerts")["alerts"]
            if alert["state"] == "firing" and alert["labels"]["severity"] == "page"
        }
        return Look(at, now, frozenset(pages))

    @property
    def verdicts(self) -> str:
        tiles = self.looks[-1].tiles if self.looks else {}
        return ", ".join(f"{title}: {tiles[title].text}" for title in TITLES if title in tiles)

    @property
    def calm(self) -> bool:
        tiles = self.looks[-1].tiles if self.looks else {}
        return all(title in tiles and tiles[title].colour == "green" for title in TITLES)


def run(incident: Incident, ports: Ports, built: Built, starting: threading.Lock) -> Result:
    """Runs an incident from the start of its system to its end."""
    began = time.time()

    say = _say(incident)
    root = STATE / incident.name
    shutil.rmtree(root, ignore_errors=True)
    say(incident.fault)
    with ExitStack() as ending:
        with starting:
            site = ending.enter_context(running(root, ports, built, incident.env, slow_bucket=True, fleet=False))
        scene = Scene(site)
        reported = 'count(max by (bronze_source) (bronze_ledger_records{job="bronze/consumer"})) > 4'
        until("each source has reported", lambda: site.query(reported), CALM_S_MAX)
        scene.faults.append(("start", began, time.time()))
        looking = Looking(site)
        senders = ending.enter_context(ExitStack())
        for sender in steady(site.system.url, scene.attempts):
            senders.enter_context(sender)
        ending.enter_context(looking)
        until("all is well", lambda: looking.calm, CALM_S_MAX)
        scene.wait(BEFORE_S)
        say(f"the incident begins ({looking.verdicts})")
        with scene.fault("incident"):
            _told(scene, incident, looking, say)
        say(f"it is over ({looking.verdicts})")
        found: list[Number] = []
        if incident is REST:
            senders.close()
            scene.wait(SETTLED_S)
            found = _numbers(scene, began)
        else:
            scene.wait(AFTER_S)
        ended = time.time()
        say(f"at the end: {looking.verdicts}")
        senders.close()
        scene.wait(STORED_S)
        readings = _readings(scene, began, ended)
        looks = [look for look in looking.looks if look.at <= ended]
    seen = Seen(readings, looks, looking.errors, found)
    _seen(incident).write_bytes(pickle.dumps(seen))
    say(f"took {time.time() - began:.0f} s")
    return judged(incident, seen, say)


def _readings(scene: Scene, began: float, ended: float) -> Readings:
    bucket = Bucket(scene.site.system).read()
    return Readings.of(began, ended, scene.attempts, scene.site.bucket.puts, bucket, scene.faults)


def _numbers(scene: Scene, began: float) -> list[Number]:
    ((_, steady_from, steady_to),) = [fault for fault in scene.faults if fault[0] == "incident"]
    readings = _readings(scene, began, time.time())
    first = min(a.began for a in readings.attempts) - LOOK_S
    rest = Rest(
        readings,
        Bucket(scene.site.system).read(),
        first,
        (steady_from + RATE_S, steady_to),
        uploads_in_traces(scene.site.system),
    )
    return numbers(Grafana(scene.site.system), rest)


def _seen(incident: Incident) -> Path:
    return STATE / f"{incident.name}.pickle"


def judged(incident: Incident, seen: Seen, say: page.Say) -> Result:
    result = page.result(incident, lies(seen.readings, seen.looks), seen)
    for problem in result.problems:
        say(f"PROBLEM: {problem}")
    page.write(DOCS, [result], [incident.name for incident in INCIDENTS])
    return result


def _say(incident: Incident) -> page.Say:
    def say(text: str) -> None:
        sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {incident.name:<17} {text}\n")
        sys.stdout.flush()

    return say


def _told(scene: Scene, incident: Incident, looking: Looking, say: page.Say) -> None:
    """The incident happens; what the verdicts say about it is printed when it changes."""
    with ThreadPoolExecutor(1) as pool:
        happens = pool.submit(incident.happen, scene)
        told, began = looking.verdicts, time.monotonic()
        while not happens.done():
            if looking.verdicts != told:
                told = looking.verdicts
                say(f"{time.monotonic() - began:5.0f} s  {told}")
            scene.wait(1)
        happens.result()


def incidents(chosen: Sequence[Incident], parallel: int) -> bool:
    """Runs incidents, some at a time. Returns whether no tile lied."""
    built = build_all()
    STATE.mkdir(parents=True, exist_ok=True)
    starting, pool = threading.Lock(), ThreadPoolExecutor(parallel)
    ports = disjoint_ports(len(chosen))
    futures = {pool.submit(run, i, p, built, starting): i for i, p in zip(chosen, ports, strict=True)}
    passed = True
    for future in as_completed(futures):
        try:
            result = future.result()
        except (AssertionError, LocalError, httpx.HTTPError) as error:
            sys.stdout.write(f"{futures[future].name} could not run: {error}\n")
            passed = False
            continue
        passed &= not result.problems
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.incidents", description=__doc__)
    parser.add_argument("incidents", nargs="*", metavar="INCIDENT", help="the incidents to cause (default: all)")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="incidents at a time (%(default)s)")
    parser.add_argument("--new", action="store_true", help="only those without a result of this service")
    parser.add_argument("--judge", action="store_true", help="judge what the last runs saw once more, without a run")
    parser.add_argument("--list", action="store_true", help="list the incidents")
    args = parser.parse_args()
    known = {incident.name: incident for incident in INCIDENTS}
    if args.list:
        sys.stdout.writelines(f"{name:<17} {incident.fault}\n" for name, incident in known.items())
        return 0
    if unknown := set(args.incidents) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows the incidents")
    chosen = [known[name] for name in args.incidents or known]
    if args.judge:
        results = [judged(incident, pickle.loads(_seen(incident).read_bytes()), _say(incident)) for incident in chosen]
        return 1 if any(result.problems for result in results) else 0
    if args.new:
        done = {name for name, result in page.read(DOCS).items() if result.code == service()}
        chosen = [incident for incident in chosen if incident.name not in done]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with leave_nothing():
            return 0 if incidents(chosen, args.parallel) else 1
    except KeyboardInterrupt:
        os._exit(130)  # every process has ended; the threads that wait for them need not notice


if __name__ == "__main__":
    sys.exit(main())
