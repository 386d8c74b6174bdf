"""A job in the tree uses TLS to a storage, whatever libraries and certificates the image has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from storage.certificates import make_certificates
from storage.events import event
from storage.servers import rclone_s3

from image.containers import Engine, ended
from image.serving import CONFIG, TREE, Ways, write_script

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]


@pytest.mark.parametrize("root", ["debian-11", "debian-13", "busybox", "empty"])
@pytest.mark.parametrize("trusted_by", ["ca_file", "SSL_CERT_FILE", "nothing"])
def test_an_object_goes_in_and_out_over_tls(
    engine: Engine, ways: Ways, root: str, trusted_by: str, tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    (ways.config / "authority.pem").write_bytes(certificates.authority.read_bytes())
    authority = f"{CONFIG}/authority.pem"
    way = ways.hostile(root)
    write_script(
        ways.config,
        way.shell,
        'while read -r line; do echo "$line"; done < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/copy"\n',
    )
    with rclone_s3(tmp_path / "s3", certificates) as server:
        server.put("bucket/in/a b.txt", b"an object\n")
        provider = server.definition(ca_file=authority if trusted_by == "ca_file" else None)
        definition = {
            "name": "job",
            "storage_providers": {"minio": {"default": provider}},
            "input": [{"storage_provider": "minio.default", "path": "bucket/in"}],
            "output": [{"storage_provider": "minio.default", "path": "bucket/out"}],
        }
        (ways.config / "function_config.yaml").write_text(json.dumps(definition))
        options = way.running(f"{TREE}/bin/supervisor")
        environ = (*options.environ, ("EVENT", event("bucket/in/a b.txt").decode()))
        if trusted_by == "SSL_CERT_FILE":
            environ = (*environ, ("SSL_CERT_FILE", authority))
        done = ended(engine, replace(options, environ=environ))
        if trusted_by == "nothing":
            assert done.returncode == 66, done.stderr
            assert b"has a certificate that is not trusted" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert server.objects("bucket/out") == {"copy": b"an object\n"}
