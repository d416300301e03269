"""Bronze: raw data from HTTP through a durable queue to Parquet in a bucket, every write traceable."""

from importlib.metadata import version

__version__ = version("bronze")
