"""The bucket's server: what each identity may do, and that nothing is behind its other doors without a certificate."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import grpc
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local import servers
from local.programs import LOOPBACK, Process, free_ports, start
from local.servers import S3_RIGHTS, s3_account

KEY = "bronze/object"
#: What an identity can try with the bucket, by the right that it needs.
READS: dict[str, Callable[[Any, str], object]] = {
    "look at the bucket": lambda s3, bucket: s3.head_bucket(Bucket=bucket),
    "list": lambda s3, bucket: s3.list_objects_v2(Bucket=bucket),
    "read": lambda s3, bucket: s3.get_object(Bucket=bucket, Key=KEY)["Body"].read(),
    "look at an object": lambda s3, bucket: s3.head_object(Bucket=bucket, Key=KEY),
}
WRITES: dict[str, Callable[[Any, str], object]] = {
    "create": lambda s3, bucket: s3.put_object(Bucket=bucket, Key="bronze/other", Body=b"", IfNoneMatch="*"),
    "delete": lambda s3, bucket: s3.delete_object(Bucket=bucket, Key="bronze/other"),
}
ADMINISTRATION: dict[str, Callable[[Any, str], object]] = {
    "make a bucket": lambda s3, _: s3.create_bucket(Bucket="another"),
    "read another bucket": lambda s3, _: s3.list_objects_v2(Bucket="private"),
    "say who may use the bucket": lambda s3, bucket: s3.put_bucket_acl(Bucket=bucket, ACL="private"),
}
EVERYTHING = READS | WRITES | ADMINISTRATION
ALLOWED = {
    "admin": {*EVERYTHING},
    "api": {*READS},
    "consumer": {*READS, *WRITES},
    "canary": {*READS},
    "table": {*READS},
    "notify": set[str](),
    "retain": {*READS, *WRITES},
    "nobody": set[str](),
}


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    state = tmp_path_factory.mktemp("bucket")
    account = s3_account(state, free_ports(servers.SEAWEEDFS_PORTS))
    with start(servers.seaweedfs(state, account), state / "log") as process:
        admin = client(account)
        admin.create_bucket(Bucket="private")
        admin.put_object(Bucket=account.bucket, Key=KEY, Body=b"content")
        yield process


def client(account: servers.S3Account) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=account.env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=account.access_key,
        aws_secret_access_key=account.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def state_of(weed: Process) -> Path:
    return weed.log.parent


def test_every_identity_is_tested() -> None:
    assert ALLOWED.keys() - {"nobody"} == S3_RIGHTS.keys()


@pytest.mark.parametrize("identity", ALLOWED)
def test_an_identity_can_do_what_its_role_needs_and_no_more(weed: Process, identity: str) -> None:
    """Also with the name of an identity and another one's secret, which is that of nobody."""
    port = weed.program.ports["s3"]
    if identity == "nobody":
        secret = s3_account(state_of(weed), port, identity="api").secret_key
        account = servers.S3Account(port, "bronze-consumer", secret, "bronze")
    else:
        account = s3_account(state_of(weed), port, identity=identity)
    s3 = client(account)
    done = set()
    for action, attempt in EVERYTHING.items():
        try:
            attempt(s3, account.bucket)
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403, action  # noqa: PT017
        else:
            done.add(action)
    assert done == ALLOWED[identity]


@pytest.mark.parametrize("part", ["s3", "filer", "master", "volume"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_there_is_no_second_door(weed: Process, part: str, scheme: str) -> None:
    """Nothing is read, written or deleted without an account or a certificate, and no web page may read an answer.

    (SeaweedFS lets every page read its errors of paths that are no bucket, and of methods that it does not have.)
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with httpx.Client(verify=unverified, trust_env=False, headers={"Origin": "https://elsewhere.example"}) as stranger:
        for path in ("", "buckets/bronze/bronze/object", "bronze/bronze/object", "dir/assign", "cluster/status"):
            for method in ("GET", "PUT", "POST", "DELETE"):
                try:
                    answer = stranger.request(method, f"{scheme}://{LOOPBACK}:{weed.program.ports[part]}/{path}")
                except httpx.TransportError:
                    continue  # the TLS handshake failed, or nothing was answered
                what = f"{method} /{path}: {answer.status_code} {answer.text[:200]}"
                assert answer.status_code in {403, 405} or "Client sent an HTTP request" in answer.text, what
                if path.startswith("bronze/") and answer.status_code != 405:
                    assert not {name for name in answer.headers if name.startswith("access-control-")}, what


@pytest.mark.parametrize("part", ["s3", "filer", "master", "volume"])
@pytest.mark.parametrize("place", ["port", "socket"])
def test_the_parts_answer_nobody_without_a_certificate(weed: Process, part: str, place: str) -> None:
    """By gRPC, whatever is called: a call would make identities, entries or volumes. The same on their sockets."""
    port = weed.program.ports[f"{part}.grpc"]
    target = f"{LOOPBACK}:{port}" if place == "port" else f"unix:/tmp/seaweedfs-{part}-grpc-{port}.sock"
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary("/any.Service/Method")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10)
    # a server that takes the connection answers UNIMPLEMENTED
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_other_users_do_not_reach_its_sockets(weed: Process) -> None:
    """The filer and S3 answer on them without a certificate."""
    places = [Path(f"/tmp/seaweedfs-{part}-{weed.program.ports[part]}.sock") for part in ("filer", "s3")]
    assert [place.stat().st_mode & 0o077 for place in places] == [0, 0]
