"""The HTTP API, and its pages.

app                the application, put together from its routes
routes/            the routes, one file per subject
connection         the HTTP server's connections, with bounds on their number and on heads
certificate        its TLS certificate, which can be renewed
authentication     who sends a request, and what that allows
callers            finds who sends a request
key_ring           the API keys, which it reads every second
tokens             the tokens of an issuer, and its keys
sessions           the sessions of browsers
login_page         the page with which a browser begins one
rates              how fast each principal may send
audit              the audit log
guard              the names under which the API is called, and the policy of FastAPI's pages
request_context    a separate context per request
body               reads the body of a submission, within limits of memory and time
budget             memory and disk of all bodies together
columnar_reader    has Arrow and Parquet bodies read by columnar_worker, in a child process
columnar_child     that child process: it leaves the network first
columnar_worker    what it does
ingest             makes a checked submission durable in the queue, then accepts it
submit_telemetry   the spans and measurements of that
undeclared_counts  counts submissions by the fields that their source does not declare
openapi_security   what the OpenAPI document says about that
models, problems   the response bodies, and those of errors
feed               the feed of new objects, for followers
source_schema      the declared sources, as the API describes them
readiness          whether the API can accept submissions
cluster_report     the state of the queue's servers
page               what the page at `/` shows
glance             its figures and verdicts, from Prometheus
tiles              what it shows of them
expected           what is expected of a source, and what was found
verdicts.json      what a verdict means; `prometheus/rules.py` writes it
formats            the formats of numbers, times and paths
manual             the runbook at `/runbook`, and the other pages of docs/
manual/            links to docs/, which become files in the installed package
schemas/           JSON Schemas of facets of OpenLineage events, which the API serves
layout             what all pages share
templates/         their HTML and CSS

A role. Imports: errors, lineage, objectives, objects, plurals, protocol, records, servers, settings, telemetry.
Libraries: cryptography, fastapi, fastapi_offline, httptools, jinja2, joserfc, markdown_it, markupsafe, msgspec,
opentelemetry, pyarrow, pydantic, starlette, uvicorn.
"""
