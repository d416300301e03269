"""Text from elsewhere in the output of commands.

Pure. Imports: none.
Libraries: none.
"""

import re

#: Controls of C0 and C1, of which a terminal obeys some, and those that change the order in which text is shown.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text on one line that a terminal shows and does not obey: whoever may send records chooses texts in them."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
