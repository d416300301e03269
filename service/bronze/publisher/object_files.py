"""Objects of a bucket as files: `s3://bucket/key`.

boto3 finds the endpoint, the region and the credentials, in `AWS_*` variables and in the files of the AWS command line.
An object is read as it was at one time: it is copied to a temporary file first.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from bronze.errors import Misconfigured
from bronze.publisher.formats import FileFormat, format_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCHEME = "s3://"
_ERRNO = {403: errno.EACCES, 404: errno.ENOENT}
#: The sizes of the objects that were found, by address: to ask for each would take a request per object.
_sizes_found: dict[str, int] = {}


def is_object(file: str) -> bool:
    """Whether this is the address of an object or of a folder of objects."""
    return file.startswith(SCHEME)


def is_folder(file: str) -> bool:
    """Whether this is the address of a folder, which ends with a slash, or of a whole bucket."""
    return is_object(file) and not _key(file).rpartition("/")[2]


def object_size(file: str) -> int:
    """The size of an object in bytes. Raises `OSError`."""
    if file in _sizes_found:
        return _sizes_found[file]
    with _errors(file):
        return _client().head_object(Bucket=_bucket(file), Key=_key(file))["ContentLength"]


def copy_object(file: str, into: IO[bytes]) -> None:
    """Copies the content of an object. Raises `OSError`."""
    with _errors(file):
        _client().download_fileobj(_bucket(file), _key(file), into)


def find_objects(folder: str, pattern: str, chosen: FileFormat | None) -> list[str]:
    """The objects in a folder whose format is known, as `watching.find_files` finds files. Raises `OSError`."""
    prefix = _key(folder)
    # a bucket lists one folder, or everything below it
    delimiter: Mapping[str, Any] = {} if "/" in pattern else {"Delimiter": "/"}
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=_bucket(folder), Prefix=prefix, **delimiter)
    with _errors(folder):
        sizes = {item["Key"].removeprefix(prefix): item["Size"] for page in pages for item in page.get("Contents", [])}
    found = {
        folder.removesuffix("/") + "/" + name: size
        for name, size in sizes.items()
        if _matches(name.split("/"), pattern.split("/"))
        and not any(part.startswith(".") for part in name.split("/"))
        and format_of(name, chosen) is not None
    }
    _sizes_found.update(found)
    return sorted(found)


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _bucket(file: str) -> str:
    return file.removeprefix(SCHEME).partition("/")[0]


def _key(file: str) -> str:
    return file.removeprefix(SCHEME).partition("/")[2]


@cache
def _client() -> "S3Client":
    import boto3  # slow to import, and most files are local

    return boto3.Session().client("s3")


@contextmanager
def _errors(file: str) -> Iterator[None]:
    """Raises `OSError` for an object that cannot be read, and `Misconfigured` if there are no credentials."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        code = _ERRNO.get(error.response["ResponseMetadata"]["HTTPStatusCode"], errno.EIO)
        advice = "Check the address, AWS_ENDPOINT_URL_S3 and the credentials"
        raise OSError(code, f"{error}. {advice}", file) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise Misconfigured(f"{file}: {error}. {advice}") from error
    except (exceptions.BotoCoreError, exceptions.ParamValidationError) as error:
        raise OSError(errno.EIO, f"{error}. Check AWS_ENDPOINT_URL_S3", file) from error
