"""Text from elsewhere in the output of commands."""

import pytest

from bronze.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("N14228 äöü 東京", "N14228 äöü 東京"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nobject forged", "a\\x0aobject forged"),
        ("safe\u202efdp.exe", "safe\\x202efdp.exe"),
    ],
)
def test_a_terminal_does_not_obey_what_senders_chose(text: str, shown: str) -> None:
    assert printable(text) == shown
