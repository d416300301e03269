"""docs/api.md names each problem that the API may answer with, and no other."""

import re

from bronze.telemetry.signals import Fault, Refusal
from local.builds import REPOSITORY

ROW = re.compile(r"^\| `/problems/([a-z0-9-]+)` \| \d{3} \|", re.MULTILINE)
#: What routing and look-ups add to the refusals of a submission.
OTHERS = {"method-not-allowed", "invalid-request", Fault.UNAVAILABLE.value, Fault.INTERNAL.value}


def test_each_problem_is_in_the_guide() -> None:
    listed = ROW.findall((REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted({*(refusal.value for refusal in Refusal), *OTHERS})
