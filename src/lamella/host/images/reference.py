"""What people call an image in a registry: ``docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`` (OCI distribution-spec, "Pulling manifests")."""

import ipaddress
import re

import msgspec

from lamella.model.errors import Invalid

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_REFERENCE = re.compile(
    rf"docker://({_HOST})/({_NAME})(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(sha256:[0-9a-f]{{64}}))?", re.ASCII
)
_HINT = "write it like docker://registry.example.org/team/app:1.2"


class Reference(msgspec.Struct, kw_only=True, frozen=True):
    """``host`` with its port, ``name`` inside the registry, ``version`` a tag or a digest; ``digest`` is empty for a tag."""

    host: str
    name: str
    version: str
    digest: str

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP reaches nobody else."""
        return is_loopback(re.sub(r":[0-9]+$", "", self.host).strip("[]"))

    def __str__(self) -> str:
        return f"{self.host}/{self.name}{'@' if self.digest else ':'}{self.version}"


def parse_reference(text: str) -> Reference:
    """*text* taken apart; the tag is ``latest`` when none is named, a digest goes before a tag.

    :raise Invalid: when it is no such reference, or names no registry.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or len(text) > 512:
        if text.startswith("docker://") and "/" not in text.removeprefix("docker://"):
            raise Invalid(f"{text!r} names no registry", hint=_HINT, field="source")
        raise Invalid(f"{text!r} is not an image in a registry", hint=_HINT, field="source")
    host, name, tag, digest = match.groups()
    if "." not in host and ":" not in host and host != "localhost":
        raise Invalid(f"{text!r} names no registry: {host!r} is not a host", hint=_HINT, field="source")
    if host in ("docker.io", "index.docker.io"):
        host, name = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    return Reference(host=host, name=name, version=digest or tag or "latest", digest=digest or "")


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine by definition (RFC 6761, 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
