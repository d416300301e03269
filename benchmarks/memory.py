"""Memory: the most that API and consumer have while one body at the limit passes, and while ten million records do.

What the kernel counts as theirs (VmHWM), the pages of shared libraries included.
"""

from pathlib import Path

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target
from benchmarks.sample import RECORDS as SAMPLE_RECORDS
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, forget_peak, offer, one_line, peak_bytes, say, system

BODY_BYTES_MAX = 512 * 2**20
#: At most `BRONZE_CLASSIFICATIONS_MAX`.
CLASSIFICATIONS = 100_000
RECORDS = 10_000_000
QUICK = 20  # so much less
CONNECTIONS = 4
READABLE_S_MAX = 900.0
MB_MOST = 400
PATH = "/v1/ingest/status"
SERVICE = ("api", "consumer")


def body(source: Path, size_max: int) -> tuple[Path, int]:
    """A file of the sample's first records again and again, as large as a body may be; and how many records it has.

    Each has a `classification_id` of its own, of which a body may have only so many.
    """
    file = source.with_name(f"body-{size_max}.ndjson")
    size = records = 0
    lines = source.read_bytes().splitlines(keepends=True)[:CLASSIFICATIONS]
    with file.open("wb") as out:
        while True:
            for line in lines:
                size += len(line)
                if size > size_max:
                    return file, records
                out.write(line)
                records += 1


def passing(bench: System, load: Load) -> Figures:
    for name in SERVICE:
        forget_peak(bench.processes[name])
    mark = bench.feed.mark
    with bench.cpu() as cpu:
        sent = offer(load)
        heard = bench.feed.until(mark, sent.records, READABLE_S_MAX)
    wall_s = max(sent.ended, heard[-1].at) - sent.began
    return {
        **{f"peak {name}, MB": peak_bytes(bench.processes[name]) / 1e6 for name in SERVICE},
        "records": sent.records,
        "body, MB": sent.bytes / 1e6,
        "wall, s": wall_s,
        "records/s": sent.records / wall_s,
        "objects": len(heard),
        **cpu,
    }


def run(options: Options) -> Found:
    """Once each: a peak is no matter of chance as time is."""
    less = QUICK if options.quick else 1
    source = status(SAMPLE, say)
    large, records = body(source, BODY_BYTES_MAX // less)
    runs: dict[str, list[Figures]] = {}
    with system("memory") as bench:
        ports = [bench.port("api")]
        loads = {
            "one body": Load(ports=ports, path=PATH, file=str(large), records=records, connections=1),
            "ten million": Load(
                ports=ports,
                path=PATH,
                file=str(source),
                records=10_000,
                connections=CONNECTIONS,
                passes=RECORDS // less // SAMPLE_RECORDS + 1,
            ),
        }
        for number, (variant, load) in enumerate(loads.items()):
            runs[variant] = [passing(bench, load)]
            shown = [f"peak {name}, MB" for name in SERVICE]
            one_line(number, len(loads), variant, runs[variant][0], "records", "wall, s", *shown)
    large.unlink()
    targets = [
        Target(f"peak_{name}_{variant.replace(' ', '_')}_mb", of[0][f"peak {name}, MB"], most=MB_MOST)
        for variant, of in runs.items()
        for name in SERVICE
    ]
    return Found(runs, targets)
