"""The HTTP API, put together from its routes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from bronze import __version__
from bronze.api import problems
from bronze.api.audit import AuditLog
from bronze.api.authentication import Authentication
from bronze.api.body import BodyReader
from bronze.api.callers import Callers
from bronze.api.cluster_report import ClusterReport
from bronze.api.feed import Followers
from bronze.api.ingest import Ingest
from bronze.api.login_page import LoginPage
from bronze.api.manual import Manual
from bronze.api.openapi_security import describe_security
from bronze.api.page import Page
from bronze.api.rates import RateLimiter
from bronze.api.readiness import Readiness
from bronze.api.routes import (
    feed,
    health,
    ingest,
    lineage,
    manual,
    objects,
    page,
    schemas,
    session,
    sources,
    submissions,
)
from bronze.api.undeclared_counts import UndeclaredCounts
from bronze.errors import ErrorCode, Gone
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import LineageLookup
from bronze.lineage.submission import SubmissionLookup
from bronze.records.sources import Source
from bronze.servers.bucket import Bucket
from bronze.telemetry.sdk import FASTAPI_TELEMETRY_OFF, Telemetry


@dataclass(frozen=True)
class Parts:
    """The parts that the routes call. `on_gone` is called if queue or catalog was replaced; it ends the process."""

    sources: Mapping[str, Source]
    bodies: BodyReader
    ingest: Ingest
    undeclared: UndeclaredCounts
    submissions: SubmissionLookup
    lookups: LineageLookup
    index: CatalogIndex
    followers: Followers
    bucket: Bucket
    prefix: str
    page: Page
    manual: Manual
    readiness: Readiness
    cluster: ClusterReport
    telemetry: Telemetry
    #: False: each process behind the same port has its own, on another port
    has_metrics: bool
    on_gone: Callable[[Gone], None]
    audit: AuditLog
    #: None: everybody may do everything
    callers: Callers | None
    rates: RateLimiter
    login: LoginPage
    #: Called for each request that is refused before it reaches a route.
    on_refused: Callable[[ErrorCode], None]


def create_app(parts: Parts) -> FastAPI:
    """Create the HTTP application from its parts."""
    app = FastAPIOffline(
        title="Bronze ingestion API",
        version=__version__,
        description="Accepts raw data over HTTP and writes each accepted record to the bucket once, as Parquet. "
        "Each write can be traced.",
        telemetry=FASTAPI_TELEMETRY_OFF,
    )
    ingest.add(app, parts.sources, parts.bodies, parts.ingest, parts.undeclared, parts.telemetry)
    sources.add(app, parts.sources)
    submissions.add(app, parts.submissions)
    objects.add(app, parts.bucket, parts.prefix)
    lineage.add(app, parts.lookups)
    feed.add(app, parts.sources, parts.index, parts.followers)
    page.add(app, parts.page)
    manual.add(app, parts.manual)
    schemas.add(app)
    health.add(app, parts.readiness, parts.telemetry, has_metrics=parts.has_metrics)
    if parts.callers:
        session.add(app, parts.callers.sessions, parts.login, parts.audit)
    describe_security(app, needs_keys=parts.callers is not None)
    problems.add_handlers(app, parts.audit, parts.on_gone, parts.login)
    app.add_middleware(
        Authentication,
        callers=parts.callers,
        audit=parts.audit,
        rates=parts.rates,
        login=parts.login,
        on_refused=parts.on_refused,
    )
    # routes are tried in order, also by the instrumentation: the most frequent one is first, except for the canary's,
    # which it would match too
    order = [ingest.CANARY_PATH, ingest.PATH]
    app.router.routes.sort(key=lambda route: order.index(path) if (path := getattr(route, "path", "")) in order else 2)
    parts.telemetry.instrument(app, order)
    return app
