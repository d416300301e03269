"""The queue, the catalog and the bucket: the only modules with a client library for them.

Imports: errors, protocol, records, settings.
Libraries: boto3, botocore, msgspec, mypy_boto3_s3, nats.
"""
