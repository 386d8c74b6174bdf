"""`watchdog invoke` through TLS and a forward proxy, and with a token: what each party of the connection sees."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from client_command import answer, clean_environment, command, invoke, read_request, scripted, stderr_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from running_server import StartServer

Key = ec.EllipticCurvePrivateKey
PRINTED = answer(b"printed", Content_Type="text/plain")


# ------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``ca.pem``, and ``localhost.pem`` with its key, which this authority has signed."""
    directory = tmp_path_factory.mktemp("authority")
    now = datetime.now(UTC)

    def certificate(name: str, key: Key, issuer: str, signer: Key) -> bytes:
        is_ca = name == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(x509.KeyUsage(True, False, False, False, False, is_ca, is_ca, False, False), critical=True)
        )
        if not is_ca:
            names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (directory / "ca.pem").write_bytes(certificate("Test authority", ca_key, "Test authority", ca_key))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "localhost.pem").write_bytes(certificate("localhost", key, "Test authority", ca_key) + private)
    return directory


@contextlib.contextmanager
def tls_before(port: int, authority: Path) -> Iterator[int]:
    """A port that ends TLS, and passes everything on to another port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "localhost.pem")

    def serve(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(connection, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", port)) as plain,
        ):
            relay(secure, plain)

    with listening(serve) as own_port:
        yield own_port


def test_a_private_authority_is_trusted_with_ca_file(
    shared_server: StartServer, tmp_path: Path, authority: Path
) -> None:
    server = shared_server('cat "$INPUT_FILE_PATH"')
    content = os.urandom(300_000)
    (tmp_path / "in").write_bytes(content)
    with tls_before(server.port, authority) as port:
        url = f"https://localhost:{port}"
        done = invoke(url, "in", "--ca-file", authority / "ca.pem", cwd=tmp_path)
        assert done.returncode == 0, stderr_of(done)
        assert done.stdout == content
        done = invoke(url, "in", "--live", cwd=tmp_path, SSL_CERT_FILE=str(authority / "ca.pem"))
        assert (done.returncode, done.stdout) == (0, content)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_that_is_not_trusted_gets_no_request(tmp_path: Path, authority: Path, host: str) -> None:
    flags = [] if host == "localhost" else ["--ca-file", authority / "ca.pem"]
    with scripted(PRINTED) as service, tls_before(service.port, authority) as port:
        done = invoke(f"https://{host}:{port}", "-", *flags, cwd=tmp_path)
        assert service.requests == []
    assert done.returncode == 69
    assert f"no safe connection to {host}:{port} can be made" in stderr_of(done)
    assert "--ca-file" in stderr_of(done)


def test_https_to_a_port_without_tls_is_an_error(shared_server: StartServer, tmp_path: Path) -> None:
    done = invoke(f"https://127.0.0.1:{shared_server('true').port}", "-", cwd=tmp_path)
    assert done.returncode == 69
    assert "use http:// if the service has no TLS" in stderr_of(done)


# ------------------------------------------------------------------------------------------------ a proxy


class Proxy:
    """A small forward proxy: ``CONNECT`` makes a tunnel, and other requests are passed on. ``seen``: the heads."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.port = 0

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = read_request(connection)
            head, _, body = request.partition(b"\r\n\r\n")
            self.seen.append(head)
            method, target, _ = head.split(b"\r\n")[0].split(b" ")
            if method == b"CONNECT":
                host, _, port = target.decode().partition(":")
                with socket.create_connection((host, int(port))) as upstream:
                    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    relay(connection, upstream)
                return
            found = re.fullmatch(rb"http://([^:/]+):(\d+)(/.*)", target)
            assert found is not None, target
            with socket.create_connection((found[1].decode(), int(found[2]))) as upstream:
                upstream.sendall(head.replace(target, found[3], 1) + b"\r\n\r\n" + body)
                relay(connection, upstream)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    with listening(made.serve) as made.port:
        yield made


def test_a_proxy_of_the_environment_is_used_for_http(shared_server: StartServer, tmp_path: Path, proxy: Proxy) -> None:
    server = shared_server('cat "$INPUT_FILE_PATH"')
    url = f"http://127.0.0.1:{server.port}"
    with_password = f"http://user:pass@127.0.0.1:{proxy.port}"
    done = invoke(url, "-", cwd=tmp_path, stdin=b"abc", http_proxy=with_password)
    assert (done.returncode, done.stdout) == (0, b"abc")
    (head,) = proxy.seen
    assert head.startswith(f"POST {url}/?output=base64 HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pass") in head
    done = invoke(url, "-", cwd=tmp_path, stdin=b"abc", http_proxy=f"127.0.0.1:{proxy.port}")
    assert (done.stdout, len(proxy.seen)) == (b"abc", 2)


def test_a_proxy_makes_a_tunnel_for_https_and_does_not_see_the_token(
    shared_server: StartServer, tmp_path: Path, proxy: Proxy, authority: Path
) -> None:
    server = shared_server('cat "$INPUT_FILE_PATH"', WATCHDOG_AUTH_TOKEN="t0ken")
    (tmp_path / "token").write_text("t0ken\n")
    with tls_before(server.port, authority) as port:
        done = invoke(
            f"https://localhost:{port}",
            "-",
            *("--ca-file", authority / "ca.pem", "--token-file", "token"),
            cwd=tmp_path,
            stdin=b"abc",
            HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}",
        )
    assert (done.returncode, done.stdout) == (0, b"abc"), stderr_of(done)
    (head,) = proxy.seen
    assert head.startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
    assert b"t0ken" not in head


@pytest.mark.parametrize(
    "environ",
    [
        {"http_proxy": "PROXY", "no_proxy": "example.org,127.0.0.1"},
        {"http_proxy": "PROXY", "NO_PROXY": "*"},
        {"https_proxy": "PROXY"},
        {"HTTP_PROXY": "PROXY"},
        {"http_proxy": ""},
    ],
)
def test_the_proxy_is_left_out_if_the_environment_says_so(
    tmp_path: Path, proxy: Proxy, environ: dict[str, str]
) -> None:
    environ = {name: value.replace("PROXY", f"http://127.0.0.1:{proxy.port}") for name, value in environ.items()}
    with scripted(PRINTED) as service:
        done = invoke(service.url, "-", cwd=tmp_path, **environ)  # type: ignore[arg-type]
    assert (done.stdout, proxy.seen) == (b"printed", [])


def test_errors_of_a_proxy_name_the_proxy(tmp_path: Path, authority: Path, free_port: int) -> None:
    done = invoke("http://127.0.0.1:1", "-", cwd=tmp_path, http_proxy=f"http://127.0.0.1:{free_port}")
    assert done.returncode == 69
    assert stderr_of(done).startswith(f"the proxy 127.0.0.1:{free_port} cannot be reached: Connection refused")
    with scripted(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as refusing:
        done = invoke("https://localhost:1", "-", cwd=tmp_path, https_proxy=refusing.url)
    assert done.returncode == 69
    assert "the proxy refuses the connection: 407" in stderr_of(done)
    for wrong in ("socks5://127.0.0.1:1", "http://user:s3cret@127.0.0.1:99999"):
        done = invoke("http://127.0.0.1:1", "-", cwd=tmp_path, http_proxy=wrong)
        assert done.returncode == 2
        assert "http_proxy has no usable proxy (not shown)" in stderr_of(done)


# ------------------------------------------------------------------------------------------------ the request


def test_the_request_has_what_a_gateway_expects(tmp_path: Path) -> None:
    (tmp_path / "my photo.jpg").write_bytes(b"abcd")
    (tmp_path / "token").write_text("t0ken\n")
    with scripted(PRINTED) as service:
        invoke(f"{service.url}/run/x?a=1", "my photo.jpg", "--token-file", "token", cwd=tmp_path)
        head, _, body = service.requests[0].partition(b"\r\n\r\n")
    assert body == b"YWJjZA=="
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /run/x?a=1&output=base64 HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines)
    assert re.fullmatch(r"oscar-watchdog-invoke/.+", headers.pop("User-Agent"))
    assert headers == {
        "Host": f"127.0.0.1:{service.port}",
        "Accept": "application/problem+json, */*;q=0.5",
        "Accept-Encoding": "identity",
        "Authorization": "Bearer t0ken",
        "Content-Length": "8",
        "Content-Type": "text/plain",
        "X-Filename": "my%20photo.jpg",
        "X-Input-Encoding": "base64",
    } | ({"Connection": headers["Connection"]} if "Connection" in headers else {})


def test_the_netrc_of_the_user_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    with scripted(PRINTED) as service:
        invoke(service.url, "-", cwd=tmp_path, HOME=str(tmp_path))
        assert b"Authorization" not in service.requests[0]


def test_a_token_may_come_from_a_pipe(tmp_path: Path) -> None:
    with scripted(PRINTED) as service:
        shell = 'exec "$@" --token-file <(echo t0ken)'
        subprocess.run(
            ["bash", "-c", shell, "bash", *command(service.url, "/dev/null")],
            cwd=tmp_path,
            env=clean_environment(),
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert b"\r\nAuthorization: Bearer t0ken\r\n" in service.requests[0]


# ------------------------------------------------------------------------------------------------ connections


@contextlib.contextmanager
def listening(serve: object) -> Iterator[int]:
    """Call ``serve`` with each new connection, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()  # type: ignore[arg-type]

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=60)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass on bytes in both directions until one side closes."""
    while True:
        pending = isinstance(one, ssl.SSLSocket) and one.pending()
        readable = [one] if pending else select.select([one, other], [], [], 60)[0]
        if not readable:
            return
        for source in readable:
            data = source.recv(65536)
            if not data:
                return
            (other if source is one else one).sendall(data)
