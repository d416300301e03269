"""What was changed since the recording, by intention."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What was changed since, by intention: the text of before, that of now, and why readers of the old one go on to work.
CHANGED: Sequence[tuple[str, str, str]] = (
    (
        "a late submission under a key that another body was stored with",
        "its Idempotency-Key belongs to a stored submission with another body",
        "The reason of a dead letter is a text for operators: readers show it and do not interpret it.",
    ),
    (
        "its sender had them kept apart",
        "its sender asked for quarantine",
        "The reason of rejected records is a text for operators: readers show it and do not interpret it.",
    ),
    (
        "The run that the record belongs to.",
        "The id of the classification that the record belongs to.",
        "A description in a JSON Schema does not affect which records are valid.",
    ),
    (
        '"deny_delete": true, "deny_purge": false, "allow_rollup_hdrs": true, "consumer_limits": {}',
        '"deny_delete": true, "deny_purge": true, "allow_rollup_hdrs": false, "consumer_limits": {}',
        "Roles never purge or roll up keys; those of before find the stream of the keys and leave its options.",
    ),
    (
        '"deny_purge": false, "allow_rollup_hdrs": false, "consumer_limits": {}, "allow_msg_ttl": true',
        '"deny_purge": true, "allow_rollup_hdrs": false, "consumer_limits": {}, "allow_msg_ttl": true',
        "Roles never purge the catalog.",
    ),
    (
        '"consumer_limits": {}, "allow_msg_ttl": false, "allow_atomic": true',
        '"consumer_limits": {"inactive_threshold": 10000000000}, "allow_msg_ttl": false, "allow_atomic": true',
        "How long the server keeps a reader's consumer that nobody uses: readers of before name no longer time.",
    ),
)


def as_changed(text: str) -> str:
    for before, after, _ in CHANGED:
        text = text.replace(before, after)
    return text


#: What was added since, at the end of its document or list, and why readers that do not know it go on to work.
ADDED: Sequence[tuple[re.Pattern[str], str]] = (
    (
        re.compile(r',\s?\\?"schema_versions\\?":\s?(\[[0-9, ]*\]|null)(?=})'),
        "The versions of its source that an object's rows have: readers ignore fields that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"(totals_before|totals)\\?":\s?({[^{}]*}|null)(?=})'),
        "The totals of a lane: readers ignore fields that they do not know, and count totals that are missing.",
    ),
    (
        re.compile(r',\s?\\?"erased\\?":\s?0(?=})'),
        "How many records of an object were erased: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"principal\\?":\s?null(?=})'),
        "Who sent a submission, if the API has keys: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"snapshot\\?":\s?({[^{}]*}|null)(?=})'),
        "The snapshot of a table that first had an object of a lineage: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"in_table\\?":\s?(true|false|null)(?=})'),
        "Whether the table of its source has an object of a lineage: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"ended_at\\?":\s?(\\?"[^"\\]*\\?"|null)(?=})'),
        "When the write of an object of a lineage ended: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"in_bucket\\?":\s?(true|false|null)(?=})'),
        "Whether an object of a lineage is in the bucket: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"removed\\?":\s?null(?=})'),
        "Why an object of a lineage was removed: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"event_time\\?":\s?null(?=})'),
        "The event time of a source: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"expectations\\?":\s?{[^{}]*({[^{}]*})?[^{}]*}(?=})'),
        "What a source expects of its data: clients ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"strict\\?":\s?false(?=})'),
        "Whether a source refuses undeclared fields: clients ignore members that they do not know.",
    ),
    (
        re.compile(r", 'error_status'"),
        "The status of a refusal in the summary of a publisher: programs ignore members that they do not know.",
    ),
    (
        re.compile(r',\s?\\?"removed\.>\\?"'),
        "The subject of removal records on the catalog's stream: readers of the catalog follow their own subjects.",
    ),
)


def without_added(text: str) -> str:
    for field, _ in ADDED:
        text = field.sub("", text)
    return text


def without_canary(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a system wrote, without the lanes, claims and schema of the canary's source, which was added since: roles of
    before do not know that source, and look at the streams and keys of their own sources only.
    """
    queue = [
        {**stream, "messages": [one for one in stream["messages"] if ".canary" not in one["subject"]]}
        for stream in written["queue"]
        if not stream["config"]["name"].startswith("BRONZE_CANARY_")
    ]
    return {**written, "queue": queue}
