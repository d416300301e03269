"""What can go wrong, split by who has to act.

BronzeError
 ├── Refused         the sender mends the submission and sends it again
 ├── Unavailable     nobody: it passes, try again later
 ├── Poison          an operator looks at the message that was set aside
 ├── Halted          an operator looks at the lane: going on could lose or double data
 │    └── Gone       a supervisor starts the role anew: another stream has taken the place of the one it worked on
 └── Misconfigured   an operator mends the settings; the role does not start

Pure. Imports: none.
Libraries: none.
"""

from collections.abc import Mapping


class BronzeError(Exception):
    """The root of every error that this package raises on purpose."""


class Refused(BronzeError):
    """A submission that its sender has to mend; becomes an RFC 9457 problem document.

    `kind` is the closed word that is the end of the problem's `type` and the `error.type` of its metric;
    `members` are the document's extension members, such as the record's index and field.
    """

    def __init__(self, status: int, kind: str, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.members: Mapping[str, object] = members


class Unavailable(BronzeError):
    """Something that we depend on is away or full; `kind` is a closed word, as for `Refused`."""

    def __init__(self, kind: str, detail: str, *, retry_after_s: int = 5, **members: object) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.members: Mapping[str, object] = members


class Poison(BronzeError):
    """A message that cannot become rows. It is kept byte for byte in quarantine, and the chain goes on."""


class Halted(BronzeError):
    """The queue, the bucket and the catalog contradict each other: the lane stops and touches nothing."""


class Gone(Halted):
    """A lane's or the catalog's stream was replaced: the process ends, and one that is started anew finds the other."""


class Misconfigured(BronzeError):
    """Settings or declarations that cannot work; the message says which and what to do."""
