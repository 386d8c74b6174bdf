"""Real WebDAV servers on the loopback interface: nginx, Apache, rclone, wsgidav. All with a password, one root."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from running_server import free_port

from storage.certificates import Certificates
from storage.servers import rclone_program, running
from watchdog.settings.storage_providers import Provider

LOGIN, PASSWORD = "käthe", "päss word"
_MODULES_OF_APACHE = Path("/usr/lib/apache2/modules")
_MODULE_OF_NGINX = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")


@dataclass(frozen=True)
class WebDavServer:
    """A server and the directory that is its root."""

    endpoint: str
    root: Path

    def provider(self, **fields: Any) -> Provider:
        return Provider(
            **{
                "kind": "webdav",
                "id": "default",
                "endpoint": self.endpoint,
                "user": LOGIN,
                "secret": PASSWORD,
                **fields,
            }
        )

    def definition(self, input_path: str, output_path: str) -> dict[str, Any]:
        """Return the parts of a service definition in which this server is named as a dCache."""
        fields = {"hostname": self.endpoint, "login": LOGIN, "password": PASSWORD}
        return {
            "storage_providers": {"webdav": {"dcache": fields}},
            "input": [{"storage_provider": "webdav.dcache", "path": input_path}],
            "output": [{"storage_provider": "webdav.dcache", "path": output_path}],
        }


def _htpasswd(directory: Path) -> Path:
    """Write a file with the user. Apache and nginx both read SHA-1 without a further library."""
    path = directory / "htpasswd"
    path.write_text(f"{LOGIN}:{{SHA}}{b64encode(sha1(PASSWORD.encode()).digest()).decode()}\n")
    path.chmod(0o644)
    return path


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[WebDavServer]:
    """Run nginx with its DAV module and the module for PROPFIND."""
    root, port = _root(directory), free_port()
    for name in ("body", "logs"):
        (directory / name).mkdir()
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"""load_module {_MODULE_OF_NGINX};
daemon off; user root; pid {directory}/nginx.pid; error_log {directory}/logs/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {directory}/body; {temporary}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      root {root}; client_max_body_size 0;
      auth_basic dav; auth_basic_user_file {_htpasswd(directory)};
      dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS;
    }}
  }}
}}
"""
    )
    command: list[str | Path] = [
        "nginx",
        "-p",
        directory,
        "-c",
        directory / "nginx.conf",
        "-e",
        directory / "logs/first.log",
    ]
    with running(command, port):
        yield WebDavServer(f"http://127.0.0.1:{port}", root)


@contextlib.contextmanager
def apache(_: Path) -> Iterator[WebDavServer]:
    """Run Apache with mod_dav, below a path.

    Its workers run as another user. Each pytest that starts on this machine closes the directory of all pytests to
    other users, so Apache has a directory elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="watchdog-apache-") as directory:
        yield from _apache(Path(directory))


def _apache(directory: Path) -> Iterator[WebDavServer]:
    root, port = _root(directory), free_port()
    modules = "mpm_event authn_core authn_file authz_core authz_user auth_basic dav dav_fs alias"
    loads = "\n".join(
        f"LoadModule {name}_module {_MODULES_OF_APACHE}/mod_{name}.so"
        for name in modules.split()
        if (_MODULES_OF_APACHE / f"mod_{name}.so").exists()
    )
    (directory / "apache.conf").write_text(
        f"""{loads}
ServerRoot {directory}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
DavLockDB {directory}/locks
User www-data
Group www-data
StartServers 1
AllowEncodedSlashes On
Alias /data {root}
<Location /data>
  Dav On
  AuthType Basic
  AuthName dav
  AuthUserFile {_htpasswd(directory)}
  Require valid-user
</Location>
"""
    )
    shutil.chown(root, "www-data", "www-data")
    shutil.chown(directory, "www-data", "www-data")
    with running(["apache2", "-D", "FOREGROUND", "-f", directory / "apache.conf"], port):
        yield WebDavServer(f"http://127.0.0.1:{port}/data", root)


@contextlib.contextmanager
def rclone_webdav(directory: Path, certificates: Certificates | None = None) -> Iterator[WebDavServer]:
    """``rclone serve webdav``; with certificates it speaks TLS."""
    root, port = _root(directory), free_port()
    command: list[str | Path] = [
        rclone_program(),
        "serve",
        "webdav",
        "--addr",
        f"127.0.0.1:{port}",
        "--config",
        "/dev/null",
    ]
    command += ["--user", LOGIN, "--pass", PASSWORD, str(root)]
    if certificates is not None:
        command += ["--cert", str(certificates.certificate), "--key", str(certificates.key)]
    with running(command, port):
        yield WebDavServer(f"http{'s' if certificates else ''}://127.0.0.1:{port}", root)


@contextlib.contextmanager
def wsgidav(directory: Path) -> Iterator[WebDavServer]:
    """wsgidav on cheroot."""
    root, port = _root(directory), free_port()
    (directory / "wsgidav.yaml").write_text(
        f"""host: 127.0.0.1
port: {port}
server: cheroot
provider_mapping: {{"/": "{root}"}}
http_authenticator: {{accept_basic: true, accept_digest: false, default_to_digest: false}}
simple_dc: {{user_mapping: {{"*": {{"{LOGIN}": {{password: "{PASSWORD}"}}}}}}}}
logging: {{enable: false}}
"""
    )
    program = Path(sys.executable).parent / "wsgidav"
    with running([program, "--config", directory / "wsgidav.yaml"], port):
        yield WebDavServer(f"http://127.0.0.1:{port}", root)


SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[WebDavServer]]] = {
    "nginx": nginx,
    "apache": apache,
    "rclone": rclone_webdav,
    "wsgidav": wsgidav,
}


def missing_program(name: str) -> str | None:
    """Why this server cannot be started here, or None."""
    if name == "nginx" and not (shutil.which("nginx") and _MODULE_OF_NGINX.exists()):
        return "nginx with its module dav-ext is not here (Debian: nginx-light, libnginx-mod-http-dav-ext)"
    if name == "apache" and not (shutil.which("apache2") and _MODULES_OF_APACHE.exists()):
        return "Apache is not here (Debian: apache2-bin)"
    if name in ("nginx", "apache") and os.geteuid() != 0:
        return f"{name} is started as root here"
    return None


def _root(directory: Path) -> Path:
    root = directory / "root"
    root.mkdir(parents=True)
    return root
