"""The queue, the catalog and the bucket: the only places with a client library.

Imports: errors, protocol, records, settings.
Libraries: boto3, botocore, msgspec, mypy_boto3_s3, nats.
"""
