"""Where the daemon is: a Unix socket of this machine, or a host behind TLS."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_HOME = "/var/lib/lamella"
DEFAULT_PORT = 8443


class Address:
    """``path`` of a Unix socket; or, when it is empty, ``host`` and ``port`` with the files of a client certificate."""

    __slots__ = ("authority", "certificate", "host", "key", "path", "port")

    def __init__(
        self,
        *,
        path: str = "",
        host: str = "",
        port: int = DEFAULT_PORT,
        authority: str = "",
        certificate: str = "",
        key: str = "",
    ) -> None:
        self.path = path
        self.host = host
        self.port = port
        self.authority = authority
        self.certificate = certificate
        self.key = key

    @property
    def name(self) -> str:
        """What goes into the Host header."""
        if self.path:
            return "lamella"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.path or f"https://{self.name}"


def find(host: "str | None" = None, environment: "Mapping[str, str] | None" = None) -> Address:
    """The daemon that *host* names, else ``LAMELLA_HOST``, else the socket in ``LAMELLA_HOME``, else the system's.

    A client certificate for TLS is named by ``LAMELLA_CERT``, ``LAMELLA_KEY`` and ``LAMELLA_CA``.

    :raise Invalid: when *host* is neither a path, ``unix://PATH`` nor ``https://HOST[:PORT]``.
    """
    variables = os.environ if environment is None else environment
    url = host or variables.get("LAMELLA_HOST", "")
    if not url:
        home = variables.get("LAMELLA_HOME") or DEFAULT_HOME
        return Address(path=f"{home.rstrip('/')}/run/lamellad.sock")
    path = url.removeprefix("unix://")
    if path.startswith(("/", "./")):
        return Address(path=path)
    name, port = _split(url.removeprefix("https://").rstrip("/")) if url.startswith("https://") else ("", 0)
    if not name:
        from lamella.model.errors import Invalid

        raise Invalid(
            f"{url!r} is not where a daemon can be",
            hint="write unix:///PATH/lamellad.sock, or https://HOST:PORT with LAMELLA_CERT, LAMELLA_KEY and LAMELLA_CA",
            field="host",
        )
    return Address(
        host=name,
        port=port,
        authority=variables.get("LAMELLA_CA", ""),
        certificate=variables.get("LAMELLA_CERT", ""),
        key=variables.get("LAMELLA_KEY", ""),
    )


def _split(text: str) -> tuple[str, int]:
    """Host and port of *text*; an empty host when it is not one."""
    if text.startswith("["):
        host, _, tail = text[1:].partition("]")
        port = tail.removeprefix(":") if tail else ""
    else:
        host, _, port = text.partition(":")
    if not port:
        port = str(DEFAULT_PORT)
    valid = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    return (host, int(port)) if valid and not set(host) & set("/?#@ \r\n") else ("", 0)
