"""The queue, the catalog, the bucket and the servers of telemetry: the only modules that send requests to them.

jetstream        the part of JetStream that is needed; it alone imports the NATS client
key_value        keys with compare-and-set
stream_metadata  the settings that a stream was created with
queue            the queue: one stream per lane
group_commit     small submissions that wait at the same moment, published in one batch
queue_cluster    the servers of the queue, and the replicas of its streams
lane_lock        the lock of a lane
bucket           the interface of the bucket
s3               the bucket on S3; it alone imports the S3 client
catalog          the catalog: which objects exist, and the identities of their submissions
catalog_feed     the catalog's entries in order, for readers that follow new objects
catalog_rebuild  the stream of a catalog that is being rebuilt
iceberg          Iceberg tables; it alone imports pyiceberg
schema_registry  the registered versions of the sources
principal_store  the principals and their API keys
issuer_keys      the public keys of the issuer of tokens
prometheus       instant queries and exemplars
trace_store      traces, from Tempo or Zipkin
http_json        the requests of these two

Imports: errors, protocol, queue_servers, records, settings.
Libraries: boto3, botocore, httpx, msgspec, mypy_boto3_s3, nats, pyarrow,
pyiceberg.
"""
