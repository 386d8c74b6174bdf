"""Real S3 servers on the loopback interface: the server of rclone, and the server of moto, which checks signatures."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from running_server import free_port

from storage.certificates import Certificates
from watchdog.settings.storage_providers import Provider

PATIENCE_S = 120.0
ACCESS_KEY, SECRET_KEY = "ACCESSKEYOFTESTS", "secret-key-of-tests/+="
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A server with one bucket, ``bucket``. ``root``: the directory with the buckets, if the server has one."""

    endpoint: str
    access_key: str
    secret_key: str
    certificates: Certificates | None = None
    root: Path | None = None

    def provider(self, **fields: Any) -> Provider:
        return Provider(
            **{
                "kind": "minio",
                "id": "default",
                "endpoint": self.endpoint,
                "user": self.access_key,
                "secret": self.secret_key,
                "region": REGION,
                **fields,
            }
        )

    def definition(self, **fields: Any) -> dict[str, Any]:
        """Return this server as ``storage_providers.minio.default`` of a service definition."""
        ca_file = {"ca_file": str(self.certificates.authority)} if self.certificates else {}
        keys = {"endpoint": self.endpoint, "access_key": self.access_key, "secret_key": self.secret_key}
        return keys | {"region": REGION} | ca_file | fields

    def put(self, location: str, data: bytes) -> None:
        """Store an object with Amazon's own client."""
        bucket, _, key = location.partition("/")
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def put_versions(self, location: str, *contents: bytes) -> list[str]:
        """Store several versions of an object in a bucket with versioning. Return the ids of the versions."""
        bucket, _, key = location.partition("/")
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return [client.put_object(Bucket=bucket, Key=key, Body=data)["VersionId"] for data in contents]

    def objects(self, location: str) -> dict[str, bytes]:
        """Return all objects below a place, by their names relative to it."""
        assert self.root is not None
        directory = self.root / location
        return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    def client(self) -> Any:
        """Return Amazon's own client, which shows the content of the server independently of the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=str(self.certificates.authority) if self.certificates else None,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 1},
                proxies={},
            ),
        )


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], port: int | None, *, patience_s: float = PATIENCE_S, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as a child of the test until the end of the context. If ``port`` is given, wait until it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        deadline_s = time.monotonic() + patience_s
        while port is not None:
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_s, f"{command[0]} does not listen"
                time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rclone_program() -> Path:
    return Path(sys.executable).parent / "rclone"


def rclone_s3_command(directory: Path, port: int, keys: str) -> list[str | Path]:
    """Return the command of ``rclone serve s3`` for a directory. Its folders are the buckets.

    ``keys``: the access key, a comma, the secret key.
    """
    options = ["--addr", f"127.0.0.1:{port}", "--config", "/dev/null", "--auth-key", keys]
    return [rclone_program(), "serve", "s3", *options, str(directory)]


@contextlib.contextmanager
def rclone_s3(directory: Path, certificates: Certificates | None = None) -> Iterator[S3Server]:
    """Run :func:`rclone_s3_command`, with TLS if there are certificates."""
    (directory / "bucket").mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = rclone_s3_command(directory, port, f"{ACCESS_KEY},{SECRET_KEY}")
    if certificates is not None:
        command += ["--cert", str(certificates.certificate), "--key", str(certificates.key)]
    with running(command, port):
        scheme = "https" if certificates else "http"
        yield S3Server(f"{scheme}://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY, certificates, directory)


# Three requests make a user, a key and a policy. moto checks the signatures of all later requests.
_MOTO_REQUESTS_WITHOUT_AUTH = 3
_ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@contextlib.contextmanager
def moto_s3() -> Iterator[S3Server]:
    """Run the server of moto, which checks signatures."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with running(
        command,
        port,
        env={"INITIAL_NO_AUTH_ACTION_COUNT": str(_MOTO_REQUESTS_WITHOUT_AUTH), "PATH": "/usr/bin:/bin"},
    ):
        endpoint = f"http://127.0.0.1:{port}"
        iam = boto3.client(
            "iam",
            endpoint_url=endpoint,
            aws_access_key_id="any",
            aws_secret_access_key="any",
            region_name=REGION,
            config=Config(proxies={}),
        )
        iam.create_user(UserName="tests")
        key = iam.create_access_key(UserName="tests")["AccessKey"]
        iam.put_user_policy(UserName="tests", PolicyName="all", PolicyDocument=json.dumps(_ALLOW_ALL))
        server = S3Server(endpoint, key["AccessKeyId"], key["SecretAccessKey"])
        server.client().create_bucket(Bucket="bucket")
        yield server
