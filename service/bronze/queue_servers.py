"""The servers of the queue: their addresses, and with which user and which certificates a process connects to them.

Imports: errors.
Libraries: none.
"""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from bronze.errors import Misconfigured

SCHEMES = ("nats", "tls")
PORT = 4222
EXAMPLE = "nats://127.0.0.1:4222, or tls://nats-1:4222,tls://nats-2:4222"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the queue's servers, without the user and the password that they may contain."""

    urls: tuple[str, ...]
    user: str | None
    password: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Addresses, separated by commas. Raises `ValueError`, whose text does not contain the password."""
        parsed = [_parse(part.strip(), number) for number, part in enumerate(text.split(","), start=1)]
        if len({address.scheme for address in parsed}) > 1:
            raise ValueError("some of the addresses have tls:// and some have not: use TLS for all of them or for none")
        users = {(address.username, address.password) for address in parsed}
        if len(users) > 1:
            raise ValueError("the addresses have different users: a process connects to all servers as the same user")
        user, password = users.pop()
        if (user or None) is None and (password or None) is None:
            return cls(tuple(map(_url, parsed)), None, None)
        if not user or not password:
            raise ValueError("an address has a user without a password, or a password without a user")
        return cls(tuple(map(_url, parsed)), unquote(user), unquote(password))


def _parse(text: str, number: int) -> SplitResult:
    wrong = ValueError(f"address {number} is not the address of a NATS server, such as {EXAMPLE}")
    try:
        address = urlsplit(text if "://" in text else f"nats://{text}")
        port = address.port
    except ValueError:
        raise wrong from None
    named = address.hostname and not re.search(r"[\s%]", address.hostname)
    if address.scheme not in SCHEMES or not named or port == 0:
        raise wrong
    if address.path not in {"", "/"} or address.query or address.fragment:
        raise wrong
    return address


def _url(address: SplitResult) -> str:
    host = f"[{address.hostname}]" if ":" in (address.hostname or "") else address.hostname
    return f"{address.scheme}://{host}:{address.port or PORT}"


@dataclass(frozen=True)
class QueueServers:
    """The servers of the queue, and how to connect to them."""

    urls: Sequence[str]
    user: str | None = None
    #: the password, or the file that has it; it is read for each connection, so that it can be replaced
    password: str | Path = ""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __str__(self) -> str:
        return ", ".join(self.urls)

    def __repr__(self) -> str:
        return f"QueueServers({self}, user={self.user!r})"

    @property
    def tls(self) -> bool:
        return self.urls[0].startswith("tls://")

    @property
    def inbox_prefix(self) -> str:
        """Below it arrive the answers to the requests of a process; the server lets no other user read them."""
        return "_INBOX" + (f"_{re.sub('[^A-Za-z0-9_-]', '_', self.user)}" if self.user else "")

    def read_password(self) -> str:
        """Raises `OSError` and `ValueError`."""
        if isinstance(self.password, str):
            return self.password
        password = self.password.read_text().strip()
        if not password:
            raise ValueError(f"the file {self.password} is empty")
        return password

    def check(self) -> None:
        """Raises `Misconfigured` if a file cannot be used."""
        try:
            self.read_password()
        except (OSError, ValueError) as error:
            raise Misconfigured(f"BRONZE_NATS_PASSWORD_FILE: {error}") from error
        self.tls_context()

    def tls_context(self) -> ssl.SSLContext | None:
        """None without TLS. Raises `Misconfigured` if a file cannot be used."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file, password=_refuse_password)
        except (OSError, ValueError) as error:
            files = ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise Misconfigured(
                f"BRONZE_NATS_CA_FILE, BRONZE_NATS_CERT_FILE, BRONZE_NATS_KEY_FILE: cannot use {files}: {error}"
            ) from error
        return context


def _refuse_password() -> str:
    raise ValueError("the key has a password")  # else OpenSSL would ask on the terminal
