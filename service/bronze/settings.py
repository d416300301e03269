"""Every setting of ours, in one place: environment variables `BRONZE_*`.

What has a standard variable has no setting here: `OTEL_*` for telemetry (the exporters, sampling and
`OTEL_EXPORTER_PROMETHEUS_HOST` and `_PORT` for `/metrics` of consumer and publisher), `AWS_*` for the bucket's
endpoint, region and keys (as boto3 reads them).

Imports: errors.
Libraries: pydantic, pydantic_settings.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bronze.errors import Misconfigured

MIB = 2**20
#: Where the trace's id stands in `trace_url`.
TRACE_ID = "{trace_id}"
_HTTP = r"^https?://[^\s/]"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BRONZE_", frozen=True)

    sources: Path | None = Field(
        None, description="The TOML file that declares all sources (docs/sources.md); the built-in four without one."
    )

    nats_url: str = Field("nats://127.0.0.1:4222", description="The queue's address.")
    nats_server_name: str | None = Field(
        None, description="Refuse a queue server of another name (a port that answers may be another's)."
    )
    queue_replicas: PositiveInt = Field(1, description="Replicas of the streams: 1, or 3 on a cluster.")
    queue_bytes_max: PositiveInt = Field(
        1024 * MIB, description="Bound of a lane's stream in bytes, as compressed; a full stream answers 503."
    )
    lanes: PositiveInt = Field(
        1,
        description="Lanes a source: parallel writers. `bronze lanes N` changes their number, and this has to follow.",
    )
    open_batches_max: Annotated[int, Field(ge=1, le=40)] = Field(
        40, description="Open atomic batches a stream and API process: 40 divided by the number of processes."
    )

    bucket: str = Field("bronze", description="The bucket's name.")
    prefix: str = Field("bronze", description="First part of every object's key.")
    create_only_missing: bool = Field(
        default=False,
        description="Accept a bucket without create-only PUT: exactly one consumer will run.",
    )

    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, description="Port that the API listens on.")
    body_bytes_max: PositiveInt = Field(512 * MIB, description="Bound of a body, decoded, in bytes.")
    json_body_bytes_max: PositiveInt = Field(
        16 * MIB, description="Bound of an application/json body, which is parsed whole, in bytes."
    )
    spool_memory_bytes_max: PositiveInt = Field(
        2 * MIB, description="A submission beyond this is spooled to disk while it is checked, in bytes."
    )
    columnar_readers_max: PositiveInt = Field(
        2, description="Child processes that read Arrow and Parquet bodies at once; further bodies wait."
    )
    columnar_memory_bytes_max: Annotated[int, Field(ge=64 * MIB)] = Field(
        512 * MIB, description="Memory of each of them, in bytes; a body that takes more is refused."
    )
    columnar_cpu_s_max: PositiveInt = Field(
        60, description="CPU time of each of them, in seconds; a body that takes more is refused."
    )
    deadline_s: PositiveFloat = Field(
        30, description="From the identity's read to the last publish of a submission, in seconds."
    )

    flush_age_s: PositiveFloat = Field(15, description="Age at which waiting messages become an object, in s.")
    object_bytes_max: PositiveInt = Field(
        64 * MIB, description="What the messages of one object hold, in bytes, before they are compressed."
    )
    object_messages_max: Annotated[int, Field(ge=1, le=4096)] = Field(4096, description="Messages of one object.")
    object_submissions_max: Annotated[int, Field(ge=1, le=999)] = Field(
        999, description="Submissions of one object (the server takes 1,000 messages in one batch)."
    )
    purge_grace_s: PositiveFloat = Field(
        60,
        description="Age of a catalog entry at which its messages leave the queue; twice the deadline at least.",
    )
    lock_expiry_s: PositiveFloat = Field(
        5, description="A lane's lock without a beat for this long is taken over, in seconds."
    )

    view_dir: Path | None = Field(
        None,
        description="Folder of an API's view of the catalog, which then outlives a restart; else a temporary file.",
    )

    api_url: str = Field("http://127.0.0.1:8000", description="Where publishers find the API.")

    prometheus_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None, description="Prometheus, from which the API's page shows the state at a glance; without it, it does not."
    )
    trace_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None, description="Where a person sees a trace, with {trace_id} in it: the page links to it."
    )

    log_format: LogFormat = Field(LogFormat.JSON, description="Logs on standard output: json or console.")
    log_level: str = Field("INFO", description="Least level that is logged.")

    @property
    def delivery_objective_s(self) -> float:
        """By when a submission should be in the bucket, from its 202 on, in seconds."""
        return round(self.flush_age_s + 2, 3)

    @model_validator(mode="after")
    def _grace_covers_late_publishes(self) -> Self:
        if self.purge_grace_s < 2 * self.deadline_s:
            raise ValueError(
                f"BRONZE_PURGE_GRACE_S ({self.purge_grace_s:g}) has to be twice BRONZE_DEADLINE_S "
                f"({self.deadline_s:g}) at least: a publish that is late by the deadline must still meet its identity"
            )
        return self

    @field_validator("trace_url")
    @classmethod
    def _trace_url_has_a_place(cls, url: str | None) -> str | None:
        if url is not None and TRACE_ID not in url:
            raise ValueError(f"{url!r} does not say where the trace's id stands: put {TRACE_ID} there")
        return url


def load() -> Settings:
    """The settings from the environment. Raises `Misconfigured` that names each wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"BRONZE_{str(e['loc'][0]).upper()}: {e['msg']}"
            if e["loc"]
            else str(e["msg"]).removeprefix("Value error, ")
            for e in error.errors()
        ]
        raise Misconfigured("; ".join(lines)) from error
