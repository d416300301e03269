"""An upgrade without a pause: the version before processes, queue and bucket were scaled out beside this one."""

from pathlib import Path

import pytest

from local.programs import LocalError
from tests.compat import mixed
from tests.compat.release import BEFORE_SCALE_OUT, has, installed

PHASE_S = 2.0
SEED = 9


@pytest.mark.skipif(
    not has(BEFORE_SCALE_OUT),
    reason=f"this clone lacks the commit {BEFORE_SCALE_OUT[:10]} (`git fetch --unshallow`), and tests fetch none",
)
@pytest.mark.timeout(300)
def test_an_upgrade_and_back_loses_and_refuses_nothing(tmp_path: Path) -> None:
    """Consumers, APIs, queue and bucket are replaced one after another, forward and back, under load: each accepted
    record is stored once, whatever version accepted and stored it, and no answer is another one than 202 or 503.

    If it fails because the other version cannot read a message, this version writes a newer format without being asked
    to: docs/operations.md, "Upgrade".
    """
    assert mixed.side_by_side(installed(BEFORE_SCALE_OUT), tmp_path, SEED, PHASE_S)


def test_a_version_that_this_clone_lacks_is_named() -> None:
    with pytest.raises(LocalError, match="this clone has no commit none-such"):
        installed("none-such")
