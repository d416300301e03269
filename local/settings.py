"""What a person sets, in the environment or in the file `.env` at the top of the repository; the environment wins.

`.env.example` lists it. Compose reads the same file.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from local.builds import REPOSITORY

FILE = REPOSITORY / ".env"

#: What the file says to the runner, and not to the service.
_OURS = ("BRONZE_LOCAL_PORT_", "BRONZE_METRICS_EXPORTER", "BRONZE_TRACES_EXPORTER", "BRONZE_LOGS_EXPORTER")


def settings(file: Path = FILE) -> Mapping[str, str]:
    return {**{name: value for name, value in dotenv_values(file).items() if value is not None}, **os.environ}


def sources_file(file: Path = FILE) -> dict[str, str]:
    """The file that declares the sources, where one is named: found from the top of the repository, as Compose does."""
    named = settings(file).get("BRONZE_SOURCES")
    return {"BRONZE_SOURCES": str(REPOSITORY / named)} if named else {}


def service_settings(file: Path = FILE) -> dict[str, str]:
    """Those of the file that the service's roles read; the environment itself they have anyway."""
    values = settings(file)
    return {
        name: values[name]
        for name in dotenv_values(file)
        if name in values and name.startswith(("BRONZE_", "OTEL_TRACES_SAMPLER")) and not name.startswith(_OURS)
    }
