"""The socket that the API listens on, and who may reach it."""

import os
import socket

from bronze.errors import Misconfigured
from bronze.process import is_loopback
from bronze.settings import Auth, Settings
from bronze.wiring.reload import inherited_listener

STDIN = 0


def check_exposure(settings: Settings) -> None:
    """Raises `Misconfigured` if everybody on the network could send requests and no setting says that this is meant."""
    if settings.auth is Auth.OPEN and not is_loopback(settings.api_host):
        raise Misconfigured(
            f"BRONZE_API_HOST={settings.api_host} is reachable from other machines, and with BRONZE_AUTH=open the API "
            "accepts requests from everybody. Set BRONZE_AUTH=keys and create keys with `bronze keys create`; or set "
            "BRONZE_AUTH=delegated if something in front of the API authenticates (docs/security.md)"
        )


def bind(settings: Settings) -> socket.socket:
    """The socket, which refuses connections until a server listens on it.

    Raises `Misconfigured` if another process has the address.
    """
    if inherited := inherited_listener():
        return inherited
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.api_host, settings.api_port))
    except OSError as error:
        listener.close()
        raise Misconfigured(
            f"cannot listen on {settings.api_host}:{settings.api_port}: {error.strerror}. "
            "Choose another address with BRONZE_API_HOST and BRONZE_API_PORT"
        ) from error
    return listener


def of_supervisor() -> socket.socket:
    """The socket that a worker shares with the others: its standard input, which stays open if it starts again."""
    return socket.socket(fileno=os.dup(STDIN))
