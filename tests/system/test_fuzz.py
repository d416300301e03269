"""Schemathesis asks all that the OpenAPI document offers, rightly and wrongly."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from tests.system.blackbox import System

EXAMPLES = os.environ.get("BRONZE_FUZZ_EXAMPLES", "15")
FUZZ_S_MAX = 600
SEED = os.environ.get("BRONZE_FUZZ_SEED", "1")


@pytest.mark.timeout(FUZZ_S_MAX + 60)
def test_no_answer_is_an_error_of_ours_or_undocumented(
    system: System, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No 5xx, no status, content type or body that the document does not have, and no other check of Schemathesis'.

    BRONZE_FUZZ_EXAMPLES requests an operation, and BRONZE_FUZZ_SEED, make it longer and another.
    """
    record_property("requests per operation", EXAMPLES)
    outcome = subprocess.run(
        [
            servers.executable("schemathesis"),
            "run",
            f"{system.url}/openapi.json",
            "--exclude-checks=positive_data_acceptance",  # what a source declares is not in the document
            "--phases=coverage,fuzzing,stateful",
            f"--max-examples={EXAMPLES}",
            f"--seed={SEED}",
            "--continue-on-failure",
            "--generation-database=none",
            "--warnings=off",
            "--no-color",
        ],
        cwd=tmp_path,
        env={**system.client_env, "SCHEMATHESIS_HOOKS": "tests.system.fuzzing", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=limit_s(FUZZ_S_MAX),
        check=False,
    )
    assert outcome.returncode == 0, f"{outcome.stdout}\n{outcome.stderr}"
