"""Real registries on loopback, in plain HTTP or TLS, and what stands before them: a token service, a line that breaks."""

import asyncio
import base64
import contextlib
import datetime
import http.server
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def registry(path: Path, extra: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Debian's docker-registry over a directory of its own. Gives ``127.0.0.1:PORT``."""
    path.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{free_port()}"
    secure = f"  tls:\n    certificate: {tls[0]}\n    key: {tls[1]}\n" if tls else ""
    (path / "config.yml").write_text(
        f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {path}/store\n"
        f"http:\n  addr: {host}\n  secret: loopback\n{secure}{extra}"
    )
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(path / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        for _ in range(1800):
            with contextlib.suppress(OSError), socket.create_connection(tuple_of(host), timeout=1):
                break
            assert process.poll() is None, (path / "log").read_text()
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(90)


def tuple_of(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    return name, int(port)


def stored_blob(path: Path, digest: str) -> Path:
    """Where the registry over *path* keeps a blob's bytes."""
    bare = digest.removeprefix("sha256:")
    return path / "store" / "docker" / "registry" / "v2" / "blobs" / "sha256" / bare[:2] / bare / "data"


def put(host: str, name: str, tag: str, layout: Path) -> None:
    """Push an OCI layout as it is, whatever it says: an honest tool would refuse some of them."""
    index = json.loads((layout / "index.json").read_text())
    for blob in (layout / "blobs" / "sha256").iterdir():
        begin = urllib.request.Request(f"http://{host}/v2/{name}/blobs/uploads/", method="POST", data=b"")
        location = urllib.request.urlopen(begin, timeout=90).headers["Location"]
        url = f"{location}&digest=sha256:{blob.name}"
        end = urllib.request.Request(
            url, method="PUT", data=blob.read_bytes(), headers={"Content-Type": "application/octet-stream"}
        )
        urllib.request.urlopen(end, timeout=90).close()
    for descriptor in index["manifests"]:
        document = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
        put_manifest(host, name, tag, descriptor["mediaType"], document)


def put_manifest(host: str, name: str, version: str, media_type: str, document: bytes) -> None:
    request = urllib.request.Request(
        f"http://{host}/v2/{name}/manifests/{version}",
        method="PUT",
        data=document,
        headers={"Content-Type": media_type},
    )
    urllib.request.urlopen(request, timeout=90).close()


def certificate(path: Path, name: str) -> tuple[Path, Path, ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A self-signed certificate for *name* and 127.0.0.1."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = path / f"{name}.pem", path / f"{name}.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, secret, key, made


class TokenService:
    """Gives out tokens that the registry itself verifies, to one person, for pulling and pushing."""

    def __init__(self, path: Path, username: str, password: str) -> None:
        self.pem, _, self._key, self._certificate = certificate(path, "issuer")
        self._wanted = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
        self.scopes: list[str] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                service.scopes += query.get("scope", [])
                if self.headers.get("Authorization") != service._wanted:
                    self.send_response(401)
                    self.end_headers()
                    return
                body = json.dumps({"token": service.token(query.get("scope", []))}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_port}/token"

    def __enter__(self) -> "TokenService":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = (
                scope.rsplit(":", 1)[0].split(":", 1)[0],
                scope.split(":", 1)[1].rsplit(":", 1)[0],
                scope.rsplit(":", 1)[1],
            )
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        der = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        header = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        claims = {
            "iss": "issuer",
            "sub": "x",
            "aud": "registry",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": "1",
            "access": access,
        }
        text = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class BrokenLine:
    """A line to a registry that breaks *cuts* times, each after *after* bytes of a blob; with *dead* nobody answers."""

    def __init__(self, upstream: str, *, cuts: int, after: int) -> None:
        self.host = ""
        self.cuts = cuts
        self.sent = 0
        self.dead = False
        self.dead_after_cut = False
        self.ranges: list[str] = []
        self._after = after
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "BrokenLine":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.dead:
            writer.transport.abort()
            return
        there, out = await asyncio.open_connection(*tuple_of(self._upstream))
        asked = {"blob": False}

        async def up() -> None:
            while data := await reader.read(65536):
                asked["blob"] = b"/blobs/" in data
                self.ranges += [found.decode() for found in re.findall(rb"(?i)\r\nrange: ([^\r]+)", data)]
                out.write(data)

        async def down() -> None:
            sent = 0
            while data := await there.read(16384):
                sent += len(data) if asked["blob"] else 0
                self.sent += len(data)
                if self.cuts and sent > self._after:
                    self.cuts -= 1
                    self.dead = self.dead_after_cut
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()

        both = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            out.transport.abort()
            writer.transport.abort()


class Asked(http.server.ThreadingHTTPServer):
    """A web server on loopback that answers every GET as *answer* says (status, headers) and remembers who asked how."""

    def __init__(self, answer: Callable[[str, str], tuple[int, dict[str, str]]]) -> None:
        asked = self.asked = list[tuple[str, str]]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization", "")
                asked.append((self.path, authorization))
                status, headers = answer(self.path, authorization)
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Asked":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
