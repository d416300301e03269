"""All settings of Bronze: environment variables `BRONZE_*`.

Settings that have a standard variable are not here: `OTEL_*` for telemetry (exporters, sampling, and
`OTEL_EXPORTER_PROMETHEUS_HOST` and `_PORT` for `/metrics` of consumer and publisher), `AWS_*` for the bucket's
endpoint, region and credentials (which boto3 reads), and `OPENLINEAGE_*`.

Imports: errors, objectives, protocol, queue_servers.
Libraries: pydantic, pydantic_settings.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from bronze.errors import Misconfigured
from bronze.objectives import delivery_s_max
from bronze.protocol.principals import is_issuer, parse_key
from bronze.queue_servers import Addresses, QueueServers

MIB = 2**20
#: The placeholder of the trace id in `trace_url`.
TRACE_ID = "{trace_id}"
#: The algorithms of tokens that may be allowed: all with a public key.
JWT_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
_OPENLINEAGE = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")
_HTTP = r"^https?://[^\s/]"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class Auth(StrEnum):
    """Who may send requests to the API."""

    OPEN = "open"
    KEYS = "keys"
    DELEGATED = "delegated"


class NotifyBegin(StrEnum):
    """Where a new follower begins."""

    FIRST = "first"
    LATEST = "latest"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BRONZE_", frozen=True)

    sources: Path | None = Field(
        None,
        description="TOML file that declares all sources (docs/sources.md). Without it: the four built-in sources.",
    )

    workers: Annotated[int, Field(ge=1, le=40)] = Field(
        1,
        description="Processes of `bronze serve`, and of `bronze consume`; their option --workers comes first "
        "(docs/operations.md). With several, the API divides among them BRONZE_OPEN_BATCHES_MAX, "
        "BRONZE_BODIES_MEMORY_BYTES_MAX, BRONZE_BODIES_DISK_BYTES_MAX and BRONZE_COLUMNAR_READERS_MAX (at least 1 "
        "each).",
    )

    nats_url: Annotated[str, Field(repr=False)] = Field(
        "nats://127.0.0.1:4222",
        description="Address of the queue, or the addresses of its servers, separated by commas. With tls:// instead "
        "of nats://, the connection is encrypted, and the server has to prove who it is.",
    )
    nats_user: str | None = Field(
        None,
        description="User of this process at the queue (docs/security.md). Without it: that of the address, or none.",
    )
    nats_password: SecretStr | None = Field(None, description="Password of that user.")
    nats_password_file: Path | None = Field(
        None, description="File that has the password instead. It is read again for each connection."
    )
    nats_ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authorities that may have signed the certificate of the "
        "queue's server. Without it: those of the operating system.",
    )
    nats_cert_file: Path | None = Field(
        None, description="Certificate (PEM) of this process, if the queue's server asks for one."
    )
    nats_key_file: Path | None = Field(None, description="Key (PEM) of that certificate, without a password.")
    nats_server_name: str | None = Field(
        None,
        description="Name that the queue's server or its cluster must have, so that another server on the same port is "
        "refused.",
    )
    queue_replicas: Annotated[int, Field(ge=1, le=5)] = Field(
        1,
        description="Replicas of the streams: 1, or 3 on a cluster (docs/operations.md). New streams get this number; "
        "`bronze init` raises that of existing ones.",
    )
    queue_bytes_max: PositiveInt = Field(
        1024 * MIB,
        description="Limit of a lane's stream, in bytes, after compression. While it is full, submissions get a 503.",
    )
    lanes: PositiveInt = Field(
        1,
        description="Lanes per source: the number of consumers that can write one source in parallel. `bronze lanes N` "
        "changes the number; then set this to N as well.",
    )
    open_batches_max: Annotated[int, Field(ge=1, le=40)] = Field(
        40,
        description="Concurrent atomic batches per stream and API, all its workers together; with several APIs, 40 "
        "divided by their number.",
    )

    bucket: str = Field("bronze", description="Name of the bucket.")
    prefix: str = Field("bronze", description="First part of every object's key.")
    create_only_missing: bool = Field(
        default=False,
        description="Accept a bucket that does not support create-only PUT. Then run exactly one consumer.",
    )

    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, description="Port that the API listens on.")
    auth: Auth = Field(
        Auth.OPEN,
        description="Who may send requests to the API: keys (clients with an API key, docs/security.md), open "
        "(everybody on this machine; BRONZE_API_HOST must be a loopback address), or delegated (everybody who reaches "
        "the API: something in front of it authenticates).",
    )
    session_s_max: PositiveInt = Field(
        12 * 3600, description="Longest session of a browser, in seconds. It also ends when its API key does."
    )
    jwt_issuer: str | None = Field(
        None,
        description="Issuer whose tokens (JWT) the API accepts in addition to API keys: their claim iss. Needs "
        "BRONZE_AUTH=keys, BRONZE_JWT_AUDIENCE and BRONZE_JWT_KEYS.",
    )
    jwt_audience: str | None = Field(None, description="The audience that tokens must have: their claim aud.")
    jwt_keys: str | None = Field(
        None, description="The issuer's public keys (JWK Set): a URL (https, or http on this machine), or a file."
    )
    jwt_algorithms: str = Field(
        "RS256,ES256,EdDSA",
        description=f"Algorithms with which tokens may be signed, separated by commas: {', '.join(JWT_ALGORITHMS)}.",
    )
    jwt_leeway_s: Annotated[int, Field(ge=0, le=300)] = Field(
        30, description="Difference of the issuer's clock that is accepted, in seconds."
    )
    requests_per_s_max: PositiveFloat | None = Field(
        None,
        description="Requests per second of a principal, averaged over BRONZE_RATE_WINDOW_S, for all workers of an API "
        "together. Above that, requests get a 429. `bronze keys limit` sets another one for a principal. Without it: "
        "any number.",
    )
    bytes_per_s_max: PositiveFloat | None = Field(
        None, description="The same for the bytes of bodies, as they are sent (compressed, for example)."
    )
    rate_window_s: PositiveInt = Field(
        10,
        description="Time over which the rates of a principal are averaged, in seconds: so much it can send at once.",
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Certificate of the API, with its chain, as PEM: the API then answers by HTTPS only. A changed "
        "file is read within seconds.",
    )
    tls_key_file: Path | None = Field(None, description="Private key of the certificate, as PEM.")
    hosts: str = Field(
        "",
        description="Names under which the API is called, separated by commas; * for any. Addresses and localhost are "
        "always allowed. Without it: any name, but only those if the API listens on a loopback address.",
    )
    connections_max: PositiveInt = Field(
        512,
        description="Connections to the API. Above that, the one that has waited longest for a request is closed; if "
        "none waits, a new one gets a 503.",
    )
    head_bytes_max: Annotated[int, Field(ge=1024)] = Field(
        64 * 2**10, description="Size of a request's line and headers together, in bytes."
    )
    headers_max: PositiveInt = Field(100, description="Number of headers of a request.")
    head_s_max: PositiveFloat = Field(
        10, description="Time within which the headers of a request have to arrive, in seconds."
    )
    body_stall_s_max: PositiveFloat = Field(
        20, description="Longest time for which a sender may send nothing of a body that it has begun, in seconds."
    )
    body_bytes_per_s_min: PositiveInt = Field(
        1024,
        description="Slowest rate of a body, in bytes per second, averaged over BRONZE_BODY_STALL_S_MAX. The time in "
        "which the API itself is busy does not count.",
    )
    body_s_max: PositiveFloat = Field(1800, description="Time within which a body has to arrive, in seconds.")
    answer_stall_s_max: PositiveFloat = Field(
        30,
        description="Longest time for which a client may read nothing of an answer that waits for it, in seconds. Then "
        "the connection is closed.",
    )
    followers_max: PositiveInt = Field(
        256,
        description="Requests that wait for new objects at the same time (GET /v1/feed). Above that, one gets a 503.",
    )
    bodies_memory_bytes_max: Annotated[int, Field(ge=16 * MIB)] = Field(
        256 * MIB,
        description="Memory of all bodies together, in bytes. Above that, a large body gets a 503; small ones do not.",
    )
    bodies_disk_bytes_max: Annotated[int, Field(ge=16 * MIB)] = Field(
        8192 * MIB,
        description="Temporary files of all bodies together, in bytes. Above that, a large body gets a 503.",
    )
    body_threads_max: PositiveInt = Field(
        2, description="Threads that decompress and check large bodies. Small requests have threads of their own."
    )
    body_expansion_max: PositiveInt = Field(
        250,
        description="Decompressed bytes per byte received. The first MiB of a body is always accepted, and so are "
        "the first million rows of an Arrow or Parquet body; above that, this is also the limit of rows per byte.",
    )
    blank_lines_max: PositiveInt = Field(
        10_000, description="Blank lines of an NDJSON body, in addition to one per record."
    )
    json_values_max: PositiveInt = Field(
        250_000,
        description="Values (by the number of commas) that are parsed at once. An array of objects is parsed piece by "
        "piece and has no limit; one of other values or of deeply nested objects has.",
    )
    classifications_max: PositiveInt = Field(
        100_000, description="Different values of classification_id in one submission."
    )
    rejected_records_max: PositiveInt = Field(
        10_000, description="Rejected records of a submission with on_invalid=quarantine; with more it is refused."
    )
    rejected_bytes_max: PositiveInt = Field(
        16 * MIB, description="Size of a submission's rejected records with the reasons, in bytes."
    )
    body_bytes_max: PositiveInt = Field(512 * MIB, description="Limit of a body, in bytes, after decompression.")
    json_body_bytes_max: PositiveInt = Field(
        16 * MIB, description="Limit of an application/json body, which is parsed as a whole, in bytes."
    )
    spool_memory_bytes_max: PositiveInt = Field(
        2 * MIB, description="Memory per submission, in bytes. A larger one is spooled to disk while it is checked."
    )
    columnar_readers_max: PositiveInt = Field(
        2, description="Child processes that read Arrow and Parquet bodies at the same time; further bodies wait."
    )
    columnar_memory_bytes_max: Annotated[int, Field(ge=64 * MIB)] = Field(
        512 * MIB, description="Memory of each child process, in bytes; a body that needs more is refused."
    )
    columnar_cpu_s_max: PositiveInt = Field(
        60, description="CPU time of each child process, in seconds; a body that needs more is refused."
    )
    deadline_s: PositiveFloat = Field(
        30,
        description="Longest time to publish a submission, in seconds, from reading its identity to the last publish.",
    )

    flush_age_s: PositiveFloat = Field(15, description="Age at which waiting messages become an object, in seconds.")
    object_bytes_max: PositiveInt = Field(
        64 * MIB, description="Limit of the size of the messages of one object, in bytes, before compression."
    )
    object_messages_max: Annotated[int, Field(ge=1, le=4096)] = Field(
        4096, description="Limit of the number of messages of one object."
    )
    object_submissions_max: Annotated[int, Field(ge=1, le=999)] = Field(
        999,
        description="Limit of the number of submissions of one object (the server accepts 1,000 messages per batch).",
    )
    purge_grace_s: PositiveFloat = Field(
        60,
        description="Age of a catalog entry at which its messages are deleted from the queue, in seconds; at least "
        "twice BRONZE_DEADLINE_S.",
    )
    lock_expiry_s: PositiveFloat = Field(
        5, description="Time without a heartbeat after which another consumer takes over a lane's lock, in seconds."
    )

    view_dir: Path | None = Field(
        None,
        description="Folder of an API's catalog index, which then survives a restart. Without it: a temporary file.",
    )

    catalog_entries_max: PositiveInt = Field(
        2_000_000,
        description="Entries that the catalog should have at most: from 80 % of them on, an alert asks to remove old "
        "ones (`bronze retain`, docs/operations.md). Above it, entries are still written, so that nothing that was "
        "accepted has to wait.",
    )

    api_url: str = Field("http://127.0.0.1:8000", description="Address of the API, for publishers and commands.")
    api_key: SecretStr | None = Field(
        None, description="API key that publishers and commands send, if the API needs one (BRONZE_AUTH=keys)."
    )
    api_key_file: Path | None = Field(
        None, description="File that has that key instead. It is read when a command or a role starts."
    )

    prometheus_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None,
        description="Address of Prometheus: the API's page shows the state of the system from it.",
    )
    tempo_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None, description="Address of Tempo's HTTP API, if traces are there."
    )
    zipkin_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None, description="Address of Zipkin's HTTP API, if traces are there instead."
    )
    trace_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None,
        description="Address at which people see a trace, with the placeholder {trace_id}: the API's page links to it.",
    )

    runbook_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None,
        description="Address of the runbook that alerts and pages link to; an alert adds its name in lower case, as "
        "anchor. Without it: /runbook of the API.",
    )

    table_catalog: Annotated[str, Field(pattern=r"^\w+$")] = Field(
        "bronze",
        description="Name of the Iceberg catalog that `bronze table` commits to. Its settings are pyiceberg's: "
        "PYICEBERG_CATALOG__BRONZE__URI and others, with this name in capitals (docs/tables.md).",
    )
    table_namespace: Annotated[str, Field(min_length=1)] = Field(
        "bronze", description="Namespace of the tables in that catalog."
    )
    table_interval_s: PositiveFloat = Field(
        4, description="Shortest time between two commits to a table, in seconds. Each commit is a snapshot."
    )
    table_commit_bytes_max: PositiveInt = Field(
        256 * MIB,
        description="Limit of the rows of one commit to a table, in bytes of memory; an object is never divided.",
    )

    table_maintenance_interval_s: NonNegativeFloat = Field(
        3600,
        description="Time between two runs of the maintenance by `bronze table`, in seconds: it compacts the small "
        "files of closed hours, and expires snapshots. 0: never.",
    )
    table_expire_days: Annotated[int, Field(ge=0, le=36_500)] = Field(
        7,
        description="Age from which the maintenance removes snapshots of tables, in days, and then the files that no "
        "snapshot has. Of each hour, one snapshot stays, and all of the last 15 minutes. 0: all stay.",
    )
    webhook_url: Annotated[str, Field(pattern=_HTTP)] | None = Field(
        None, description="Address of the webhook to which `bronze notify` sends events (docs/events.md)."
    )
    webhook_secrets: SecretStr | None = Field(
        None,
        description="Secrets that sign the requests to the webhook, separated by spaces: whsec_ and 24 to 64 random "
        "bytes in base64.",
    )
    webhook_secrets_file: Path | None = Field(
        None, description="File that has these secrets instead. It is read when `bronze notify` starts."
    )
    notify_tables: bool = Field(
        False,
        description="Whether `bronze notify` announces the snapshots of the Iceberg tables, too. It then needs the "
        "catalog, with a right to read (docs/events.md).",
    )
    notify_dir: Path | None = Field(
        None, description="Folder in which `bronze notify` stores how far each receiver is. It has to survive restarts."
    )
    notify_begin: NotifyBegin = Field(
        NotifyBegin.FIRST,
        description="Where `bronze notify` begins if its folder is empty: first, with the first object of the catalog; "
        "or latest, with what is stored from now on.",
    )
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = Field(
        None,
        description="Age in days of the objects that `bronze retain` deletes without --days, of sources that declare "
        "no retention_days. `bronze retain --every 1d` deletes them each day; `make up` runs it (docs/operations.md).",
    )

    canary_interval_s: Annotated[float, Field(gt=0, le=240)] = Field(
        60, description="Interval of the canary's runs, in seconds. Alerts expect a run within five minutes."
    )

    log_format: LogFormat = Field(LogFormat.JSON, description="Format of the logs on standard output: json or console.")
    log_level: str = Field("INFO", description="Lowest level that is logged.")

    def share_of_worker(self) -> Self:
        """The settings of one of the workers, with its part of what the machine or the queue can bear in all."""
        divided = (
            "open_batches_max",
            "bodies_memory_bytes_max",
            "bodies_disk_bytes_max",
            "columnar_readers_max",
        )
        return self.model_copy(update={name: max(1, getattr(self, name) // self.workers) for name in divided})

    @property
    def delivery_objective_s(self) -> float:
        """Time from its 202 within which a submission should be in the bucket, in seconds."""
        return delivery_s_max(self.flush_age_s)

    @model_validator(mode="after")
    def _grace_covers_late_publishes(self) -> Self:
        if self.purge_grace_s < 2 * self.deadline_s:
            raise ValueError(
                f"BRONZE_PURGE_GRACE_S ({self.purge_grace_s:g}) must be at least twice BRONZE_DEADLINE_S "
                f"({self.deadline_s:g}), so that a publish that arrives one deadline late still finds its identity"
            )
        return self

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("BRONZE_TLS_CERT_FILE and BRONZE_TLS_KEY_FILE belong together: set both, or none of them")
        return self

    @model_validator(mode="after")
    def _one_api_key(self) -> Self:
        if self.api_key and self.api_key_file:
            raise ValueError("BRONZE_API_KEY and BRONZE_API_KEY_FILE are both set: set one of them")
        return self

    @model_validator(mode="after")
    def _webhook_is_signed(self) -> Self:
        if self.webhook_secrets and self.webhook_secrets_file:
            raise ValueError("BRONZE_WEBHOOK_SECRETS and BRONZE_WEBHOOK_SECRETS_FILE are both set: set one of them")
        if self.webhook_url and not (self.webhook_secrets or self.webhook_secrets_file):
            raise ValueError("BRONZE_WEBHOOK_URL needs BRONZE_WEBHOOK_SECRETS or BRONZE_WEBHOOK_SECRETS_FILE")
        return self

    @model_validator(mode="after")
    def _one_trace_store(self) -> Self:
        if self.tempo_url and self.zipkin_url:
            raise ValueError("BRONZE_TEMPO_URL and BRONZE_ZIPKIN_URL are both set: set the one that has the traces")
        return self

    @model_validator(mode="after")
    def _tokens_need_all_their_settings(self) -> Self:
        given = (self.jwt_issuer, self.jwt_audience, self.jwt_keys)
        if any(given) and not (all(given) and self.auth is Auth.KEYS):
            raise ValueError(
                "tokens need BRONZE_JWT_ISSUER, BRONZE_JWT_AUDIENCE and BRONZE_JWT_KEYS, and BRONZE_AUTH=keys"
            )
        return self

    @field_validator("jwt_issuer")
    @classmethod
    def _issuer_is_a_url(cls, issuer: str | None) -> str | None:
        if issuer is not None and not is_issuer(issuer):
            raise ValueError(f"{issuer!r} is not a URL without query and fragment")
        return issuer

    @field_validator("jwt_keys")
    @classmethod
    def _keys_cannot_be_exchanged_on_their_way(cls, keys: str | None) -> str | None:
        if keys and keys.startswith("http://") and urlsplit(keys).hostname not in {"localhost", "127.0.0.1", "::1"}:
            raise ValueError(f"{keys!r} is not on this machine: use https")
        return keys

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms_are_known(cls, algorithms: str) -> str:
        names = [name.strip() for name in algorithms.split(",")]
        if unknown := [name for name in names if name not in JWT_ALGORITHMS]:
            raise ValueError(f"{', '.join(unknown)}: use one or more of {', '.join(JWT_ALGORITHMS)}")
        return ",".join(names)

    @model_validator(mode="after")
    def _one_way_to_the_queue(self) -> Self:
        addresses = Addresses.parse(self.nats_url)
        if self.nats_user and addresses.user:
            raise ValueError("BRONZE_NATS_USER is set, and BRONZE_NATS_URL has a user, too: remove the latter")
        if self.nats_password and self.nats_password_file:
            raise ValueError("BRONZE_NATS_PASSWORD and BRONZE_NATS_PASSWORD_FILE are both set: set one of them")
        if bool(self.nats_user) != bool(self.nats_password or self.nats_password_file):
            raise ValueError(
                "BRONZE_NATS_USER needs BRONZE_NATS_PASSWORD or BRONZE_NATS_PASSWORD_FILE, and these need it"
            )
        if bool(self.nats_cert_file) != bool(self.nats_key_file):
            raise ValueError("BRONZE_NATS_CERT_FILE and BRONZE_NATS_KEY_FILE need each other")
        if (self.nats_ca_file or self.nats_cert_file) and not self.queue_servers.tls:
            raise ValueError("BRONZE_NATS_CA_FILE or BRONZE_NATS_CERT_FILE is set: BRONZE_NATS_URL needs tls:// then")
        return self

    @property
    def queue_servers(self) -> QueueServers:
        """The queue's servers, and how to connect to them."""
        addresses = Addresses.parse(self.nats_url)
        password = self.nats_password.get_secret_value() if self.nats_password else self.nats_password_file
        return QueueServers(
            addresses.urls,
            self.nats_user or addresses.user,
            password or addresses.password or "",
            self.nats_ca_file,
            self.nats_cert_file,
            self.nats_key_file,
        )

    @field_validator(
        "tempo_url",
        "zipkin_url",
        "api_key",
        "api_key_file",
        "webhook_url",
        "webhook_secrets",
        "webhook_secrets_file",
        "notify_dir",
        "retention_days",
        "jwt_issuer",
        "jwt_audience",
        "jwt_keys",
        "tls_cert_file",
        "tls_key_file",
        "nats_user",
        "nats_password",
        "nats_password_file",
        "nats_ca_file",
        "nats_cert_file",
        "nats_key_file",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value  # compose passes on variables that are not set

    @field_validator("nats_url")
    @classmethod
    def _nats_url_has_addresses(cls, text: str) -> str:
        Addresses.parse(text)
        return text

    @field_validator("api_key")
    @classmethod
    def _api_key_has_the_form_of_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and parse_key(key.get_secret_value()) is None:
            raise ValueError("it does not have the form of a key: use one that `bronze keys create` has printed")
        return key

    @field_validator("trace_url")
    @classmethod
    def _trace_url_has_a_placeholder(cls, url: str | None) -> str | None:
        if url is not None and TRACE_ID not in url:
            raise ValueError(f"{url!r} has no placeholder for the trace id: add {TRACE_ID}")
        return url


def sends_openlineage(environ: Mapping[str, str]) -> bool:
    """Whether OpenLineage's own variables choose where its events go, and do not turn it off."""
    disabled = environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true"
    return not disabled and any(value and name.startswith(_OPENLINEAGE) for name, value in environ.items())


def load(workers: int | None = None) -> Settings:
    """The settings from the environment, except those that are given.

    Raises `Misconfigured`, with all variables that have an invalid value.
    """
    try:
        return Settings() if workers is None else Settings(workers=workers)
    except ValidationError as error:
        lines = [
            f"BRONZE_{str(invalid['loc'][0]).upper()}: {_explanation(invalid)}"
            if invalid["loc"]
            else str(invalid["msg"]).removeprefix("Value error, ")
            for invalid in error.errors()
        ]
        raise Misconfigured("; ".join(lines)) from error


def _explanation(invalid: Mapping[str, Any]) -> str:
    is_address = invalid.get("ctx", {}).get("pattern") == _HTTP
    return "an address begins with http:// or https://" if is_address else invalid["msg"]
