"""`make fuzz-intake`: runs each target under atheris for its share of the time, and prints what it found.

A finding is written to tests/fuzz/corpus/, where it stays as a test. A target that ends early, by a finding or a crash,
is started again. What was covered anew is in .local/fuzz/, and is used the next time.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from local.builds import REPOSITORY
from tests.fuzz import corpus
from tests.fuzz.invariants import TARGETS
from tests.fuzz.seeds import seeds

STATE = REPOSITORY / ".local" / "fuzz"
#: The largest input, in bytes.
INPUT_BYTES_MAX = 2048
#: After as many findings, a target has to be fixed before it is worth more time.
FINDINGS_MAX = 20

_EXECUTIONS = re.compile(r"stat::number_of_executed_units: (\d+)")
_COVERAGE = re.compile(r"cov: (\d+)")
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Refused)\b.*|^==\d+== ERROR.*", re.MULTILINE)


@dataclass
class Result:
    """What a target did."""

    target: str
    seconds: float = 0.0
    executions: int = 0
    coverage: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.target:<10} {self.seconds:>7.0f} s {self.executions:>9} executions "
            f"{self.executions / max(1.0, self.seconds):>7.1f}/s   coverage {self.coverage:>5}   "
            f"{len(self.findings)} findings"
        )


def run(target: str, seconds: float) -> Result:
    result = Result(target)
    folder, found = STATE / target, STATE / f"{target}-found"
    for each in (folder, found):
        each.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*seeds(target), *(data for _, data in corpus.inputs(target))]):
        (folder / f"seed-{number}").write_bytes(data)
    start_s = time.monotonic()
    while (left_s := seconds - (time.monotonic() - start_s)) > 1 and len(result.findings) < FINDINGS_MAX:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.fuzz.target",
                target,
                f"-max_total_time={left_s:.0f}",
                f"-max_len={INPUT_BYTES_MAX}",
                "-timeout=120",
                "-rss_limit_mb=2048",
                "-print_final_stats=1",
                f"-artifact_prefix={found}/",
                str(folder),
            ],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        (STATE / f"{target}.log").write_text(ended.stdout + ended.stderr)
        output = ended.stdout + ended.stderr
        result.executions += sum(map(int, _EXECUTIONS.findall(output)))
        result.coverage = max([result.coverage, *map(int, _COVERAGE.findall(output))])
        if ended.returncode:
            result.findings.append(_keep(target, found, output))
            print(result.findings[-1], flush=True)
    result.seconds = time.monotonic() - start_s
    return result


def _keep(target: str, found: Path, output: str) -> str:
    """Add what was found to the corpus; the line that reports it."""
    errors = _ERROR.findall(output)
    reason = errors[0] if errors else output[-500:]
    files = [corpus.add(target, file.read_bytes()) for file in found.iterdir()]
    shutil.rmtree(found)
    found.mkdir()
    return f"{target}: {reason}: {', '.join(str(file.relative_to(REPOSITORY)) for file in files) or 'no input'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz-intake", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="of all targets together")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    args = parser.parse_args()
    targets = [args.only] if args.only else [*TARGETS]
    results = []
    try:
        for target in targets:
            results.append(run(target, args.seconds / len(targets)))
            print(results[-1], flush=True)
    except KeyboardInterrupt:
        print("interrupted: what was covered is used the next time", file=sys.stderr)
        return 130
    return 1 if any(result.findings for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
