"""Archives and layouts made by hand, honest ones and lying ones."""

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

import zstandard

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def tool(*arguments: object, cwd: Path | None = None) -> None:
    """Run a real program; what it says when it fails is the test's message."""
    done = subprocess.run([str(part) for part in arguments], capture_output=True, timeout=90, cwd=cwd)
    assert done.returncode == 0, (done.stdout[-500:] + done.stderr[-2000:]).decode()


def names(path: Path) -> list[str]:
    """What is in a directory."""
    return sorted(entry.name for entry in path.iterdir())


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def member(
    name: str, data: bytes = b"", *, type: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = type
    info.size = len(data)
    info.mtime = 1_600_000_000
    info.mode = 0o755 if type == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def compressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


def layout(
    path: Path,
    layers: list[bytes],
    *,
    compression: str = "gzip",
    diff_ids: list[str] | None = None,
    process: dict[str, object] | None = None,
    architecture: str = ARCHITECTURE,
) -> str:
    """An OCI layout of *layers* (tars) at *path*. Gives the manifest's digest."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes) -> dict[str, object]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest(data), "size": len(data)}

    suffix = f"+{compression}" if compression else ""
    described = [{"mediaType": OCI_LAYER + suffix, **put(compressed(layer, compression))} for layer in layers]
    configuration = {
        "architecture": architecture,
        "os": "linux",
        "config": process or {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(layer) for layer in layers]},
    }
    config = {"mediaType": OCI_CONFIG, **put(json.dumps(configuration).encode())}
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": described}
    ).encode()
    index = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, **put(manifest)}]}
    (path / "index.json").write_text(json.dumps(index))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return digest(manifest)
