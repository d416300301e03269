"""The user's settings: from the environment, or else from the file `.env` at the top of the repository.

`.env.example` lists them. Compose reads the same file.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv import dotenv_values

from bronze.errors import Misconfigured
from bronze.records.sources import load
from bronze.settings import Settings, sends_openlineage
from local.builds import REPOSITORY
from local.programs import LocalError
from local.servers import NATS_SERVERS
from local.watch import VARIABLE

FILE = REPOSITORY / ".env"

#: Whether a simulated fleet sends data: `on` or `off`.
FLEET_VARIABLE = "BRONZE_LOCAL_FLEET"
#: The number of servers of the queue.
NATS_VARIABLE = "BRONZE_LOCAL_NATS"
#: The most workers of the API, and of the consumer, for each of which there is a port.
WORKERS_MAX = 8
#: Prefixes of the settings for this runner, which the service does not get.
_RUNNER = (
    "BRONZE_LOCAL_PORT_",
    FLEET_VARIABLE,
    NATS_VARIABLE,
    "BRONZE_METRICS_EXPORTER",
    "BRONZE_TRACES_EXPORTER",
    "BRONZE_TRACES_SAMPLING",
    "BRONZE_LOGS_EXPORTER",
    "BRONZE_PUBLIC_URL",
)
#: The settings of the service's roles.
SERVICE = frozenset(f"BRONZE_{name.upper()}" for name in Settings.model_fields)
_SAMPLER = frozenset({"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"})
#: Settings of the service that the runner chooses itself. In a shell, they may be those of `.local/up/env`.
_ADDRESSES = (
    *("BRONZE_NATS_", "BRONZE_API_URL", "BRONZE_PROMETHEUS_URL"),
    *("BRONZE_TEMPO_URL", "BRONZE_ZIPKIN_URL"),
)

#: The settings of `bronze notify`, with secrets of its own.
_NOTIFICATIONS = ("BRONZE_WEBHOOK_", "BRONZE_NOTIFY_", "OPENLINEAGE_")


def settings(file: Path = FILE) -> Mapping[str, str]:
    return {**_in_file(file), **os.environ}


def sources_path(file: Path = FILE) -> Path | None:
    """The file that declares the sources, if it is set. Relative to the repository, as in Compose."""
    path = settings(file).get("BRONZE_SOURCES")
    return REPOSITORY / path if path else None


def sources_file(file: Path = FILE) -> dict[str, str]:
    """The variable for the file that declares the sources, if it is set."""
    path = sources_path(file)
    return {"BRONZE_SOURCES": str(path)} if path else {}


def service_settings(file: Path = FILE) -> dict[str, str]:
    """The settings that the service's roles have, from the file or the environment. Commands on their queue and bucket
    need the same. Addresses are left out, and a client's API key: it is a secret of the user.
    """
    return {
        name: value
        for name, value in settings(file).items()
        if name in SERVICE | _SAMPLER
        and not name.startswith((*_RUNNER, *_ADDRESSES, *_NOTIFICATIONS, "BRONZE_API_KEY"))
    }


def notifications(file: Path = FILE) -> dict[str, str]:
    """The settings of `bronze notify`, which no other role gets; none if it has nobody to send events to."""
    found = {name: value for name, value in settings(file).items() if name.startswith(_NOTIFICATIONS)}
    return found if found.get("BRONZE_WEBHOOK_URL") or sends_openlineage(found) else {}


def retention(file: Path = FILE) -> bool:
    """Whether objects expire: a setting, or a source, says after how many days."""
    if settings(file).get("BRONZE_RETENTION_DAYS"):
        return True
    try:
        return any(source.retention_days for source in load(sources_path(file)).values())
    except Misconfigured:  # `make up` and the roles say so
        return False


def fleet(file: Path = FILE) -> bool:
    """Whether a simulated fleet sends data. Raises `LocalError`."""
    text = settings(file).get(FLEET_VARIABLE) or "on"
    if text not in {"on", "off"}:
        raise LocalError(f"{FLEET_VARIABLE}={text}: use on or off")
    return text == "on"


def workers(file: Path = FILE) -> int:
    """The number of processes of the API, and of the consumer. Raises `LocalError`."""
    text = settings(file).get("BRONZE_WORKERS") or "1"
    if text not in map(str, range(1, WORKERS_MAX + 1)):
        raise LocalError(f"BRONZE_WORKERS={text}: use a number from 1 to {WORKERS_MAX}")
    return int(text)


def nats_servers(file: Path = FILE) -> int:
    """The number of servers of the queue. Raises `LocalError`."""
    text = settings(file).get(NATS_VARIABLE) or "1"
    if text not in map(str, NATS_SERVERS):
        raise LocalError(f"{NATS_VARIABLE}={text}: use {' or '.join(map(str, NATS_SERVERS))}")
    return int(text)


def ignored(used: Mapping[str, str], file: Path = FILE) -> Iterator[str]:
    """What was set and has no effect, each in one sentence. `used` are the variables of a role."""
    in_file = _in_file(file)
    for name, value in in_file.items():
        if os.environ.get(name, value) != value:
            yield f"{name} of {file.name} is ignored: the environment has another value; `unset {name}` removes it"
    for name, value in sorted({**settings(file), **sources_file(file)}.items()):
        if name == VARIABLE or name.startswith((*_RUNNER, *_ADDRESSES)):
            continue
        if name.startswith("BRONZE_") and name not in SERVICE:
            (*similar,) = difflib.get_close_matches(name, SERVICE, n=1)
            yield f"{name} is ignored: there is no such setting" + "".join(f"; there is {known}" for known in similar)
        elif name in SERVICE and value != used.get(name, value):
            yield f"{name}={value} is ignored: here it is always {used[name] or 'empty'!r}"
        elif name in in_file and name.startswith("OTEL_") and name not in _SAMPLER:
            yield f"{name} of {file.name} is ignored: of OTEL_*, only {' and '.join(sorted(_SAMPLER))} have an effect"


def _in_file(file: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(file).items() if value is not None}
