"""The user's settings: from the environment, or else from the file `.env` at the top of the repository.

`.env.example` lists them. Compose reads the same file.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from local.builds import REPOSITORY

FILE = REPOSITORY / ".env"

#: Prefixes of the settings for this runner, which the service does not get.
_RUNNER = (
    "BRONZE_LOCAL_PORT_",
    "BRONZE_METRICS_EXPORTER",
    "BRONZE_TRACES_EXPORTER",
    "BRONZE_TRACES_SAMPLING",
    "BRONZE_LOGS_EXPORTER",
    "BRONZE_PUBLIC_URL",
)


def settings(file: Path = FILE) -> Mapping[str, str]:
    return {**{name: value for name, value in dotenv_values(file).items() if value is not None}, **os.environ}


def sources_file(file: Path = FILE) -> dict[str, str]:
    """The variable for the file that declares the sources, if it is set. A relative path is relative to the repository,
    as in Compose.
    """
    path = settings(file).get("BRONZE_SOURCES")
    return {"BRONZE_SOURCES": str(REPOSITORY / path)} if path else {}


def role_settings(file: Path = FILE) -> dict[str, str]:
    """The settings that the service's roles have, from the file or the environment. Commands on their queue and bucket
    need the same. A client's API key is left out: it is a secret of the user.
    """
    return {
        name: value
        for name, value in settings(file).items()
        if name.startswith("BRONZE_") and not name.startswith((*_RUNNER, "BRONZE_API_KEY"))
    }


def service_settings(file: Path = FILE) -> dict[str, str]:
    """The settings in the file that the service's roles read. They inherit the environment in any case."""
    values = settings(file)
    return {
        name: values[name]
        for name in dotenv_values(file)
        if name in values and name.startswith(("BRONZE_", "OTEL_TRACES_SAMPLER")) and not name.startswith(_RUNNER)
    }
