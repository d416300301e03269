"""docs/api.md names each problem that the API may answer with, and no other."""

import re

from bronze.errors import Fault, Outage, Refusal
from local.builds import REPOSITORY

ROW = re.compile(r"^\| `/problems/([a-z0-9-]+)` \| \d{3} \|", re.MULTILINE)
#: What routing adds.
OTHERS = {"method-not-allowed", "invalid-request"}
#: What only other parts answer with, and the API does not.
ELSEWHERE = {Outage.THROTTLED, Outage.TIMEOUT, Outage.CONFLICT, Outage.DENIED}


def test_each_problem_is_in_the_guide() -> None:
    listed = ROW.findall((REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8"))
    words = {code.value for code in (*Refusal, *(set(Outage) - ELSEWHERE), Fault.INTERNAL)}
    assert sorted(listed) == sorted(words | OTHERS)
