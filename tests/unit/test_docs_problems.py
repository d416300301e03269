"""docs/api.md lists exactly the problems that the API may answer with."""

import re

from bronze.errors import Fault, Outage, Refusal
from local.builds import REPOSITORY

ROW = re.compile(r"^\| `/problems/([a-z0-9-]+)` \| \d{3} \|", re.MULTILINE)
#: The problems that routing adds.
ROUTING = {"method-not-allowed", "invalid-request"}
#: Codes that only other parts use, not the API.
ELSEWHERE = {Outage.THROTTLED, Outage.TIMEOUT, Outage.CONFLICT, Outage.DENIED}


def test_each_problem_is_in_the_guide() -> None:
    listed = ROW.findall((REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8"))
    codes = {code.value for code in (*Refusal, *(set(Outage) - ELSEWHERE), Fault.INTERNAL)}
    assert sorted(listed) == sorted(codes | ROUTING)
