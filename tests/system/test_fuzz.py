"""Schemathesis sends valid and invalid requests to every operation of the OpenAPI document."""

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
def test_no_answer_is_a_server_error_or_undocumented(
    system: System, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No 5xx, no undocumented status, content type or body, and no other failed check of Schemathesis.

    BRONZE_FUZZ_EXAMPLES sets the requests per operation, BRONZE_FUZZ_SEED the seed.
    """
    record_property("requests per operation", EXAMPLES)
    outcome = subprocess.run(
        [
            servers.executable("schemathesis"),
            "run",
            f"{system.url}/openapi.json",
            "--exclude-checks=positive_data_acceptance",  # the fields of a source are not in the document
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
