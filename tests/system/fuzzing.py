"""What Schemathesis sends as NDJSON, which it does not know: records that fit, nearly fit or do not, and junk."""

import json

import schemathesis
from hypothesis import strategies as st

_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["2013-01-01T00:00:00Z"])
)
_FIELDS = ["vehicle_id", "seats", "operator", "run_number", "scheduled_at", "arrived_at", "reason", "classification_id"]
_RECORDS = st.dictionaries(st.sampled_from(_FIELDS) | st.text(), _VALUES, max_size=6).map(json.dumps).map(str.encode)


schemathesis.openapi.media_type(
    "application/x-ndjson", st.lists(_RECORDS | st.binary(max_size=40), max_size=8).map(b"\n".join)
)
