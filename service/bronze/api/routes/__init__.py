"""The routes of the API, one file per subject. A handler only calls one part.

ingest       `POST /v1/ingest/{source}`: one submission
submissions  `GET /v1/submissions/{submission_id}`: its status
objects      `GET /v1/objects/{file_path}`: the contents of an object
lineage      `GET /v1/lineage`: what belongs to an id or a path
feed         `GET /v1/feed`: new objects and removals
sources      `GET /v1/sources`: the declared sources, and their schemas
page         `/`: the page for people without Grafana
session      `/login` and `/logout`: the session of a browser
manual       `/runbook`, and `/manual/{name}`: the pages of docs/
schemas      the schemas of what Bronze sends to others
health       `/livez`, `/readyz` and `/metrics`

The routes are added to the app itself: OpenTelemetry's instrumentation does not find the paths of included routers.
"""
