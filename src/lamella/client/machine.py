"""The parts of a machine as people write them, for the command and the library: from words to JSON of the API.

Devices beside the first are named by kind and number unless somebody names them: ``disk1``, ``cdrom1``, ``usb1``; NICs are named by
the layer (``nic1``).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Json = dict[str, object]

KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


def _invalid(message: str, hint: str, field: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


def disks(texts: "Iterable[str]") -> "tuple[int | None, list[Json]]":
    """The root disk's size in bytes (``None``: the image's), and the further disks.

    ``SIZE`` is the root disk's the first time, a further disk's from then on; ``NAME=SIZE`` is a further disk with a name, and
    ``root=SIZE`` the root disk's.

    :raise Invalid: when one is no size, or a name comes twice.
    """
    from lamella.model.quantity import parse_size

    root: int | None = None
    further: list[tuple[str, int]] = []
    for text in texts:
        name, equals, measure = text.rpartition("=")
        size = parse_size(measure, field="disk")
        if (not equals or name == "root") and root is None:
            root = size
        elif name == "root":
            raise _invalid(
                "the root disk has two sizes", "say --disk SIZE once, and --disk NAME=SIZE for others", "disk"
            )
        else:
            further.append((name, size))
    return root, [
        {"name": name, "size": size} for name, size in zip(_named("disk", further), _sizes(further), strict=True)
    ]


def _sizes(pairs: "Iterable[tuple[str, int]]") -> list[int]:
    return [size for _, size in pairs]


def _named(stem: str, pairs: "Sequence[tuple[str, object]]") -> list[str]:
    """The names in *pairs*, those that are empty filled in."""
    given = [name for name, _ in pairs if name]
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise _invalid(f"two devices are called {twice!r}", "give each a name of its own", stem)
    taken = set(given)
    return [name or free(stem, taken) for name, _ in pairs]


def free(stem: str, taken: "set[str]") -> str:
    """``disk1``, or the next number that is not *taken*; it is from now on."""
    number = 1
    while f"{stem}{number}" in taken:
        number += 1
    taken.add(f"{stem}{number}")
    return f"{stem}{number}"


def numbered(kind: str, field: str, values: "Iterable[str]") -> "list[Json]":
    """Devices of *kind* without names of their own: CD drives by ``image``, USB devices by ``device``."""
    return [{"name": f"{kind}{number}", field: value} for number, value in enumerate(values, 1)]


def usb(text: str) -> str:
    """``VENDOR:PRODUCT`` in four hexadecimal digits each, as the API has it.

    :raise Invalid: when *text* is none.
    """
    parts = text.lower().removeprefix("0x").replace(":0x", ":").split(":")
    if len(parts) != 2 or any(len(part) != 4 or set(part) - set("0123456789abcdef") for part in parts):
        raise _invalid(f"{text!r} is no USB device", "write its numbers like 1d6b:0002, as lsusb prints them", "usb")
    return ":".join(parts)


def directory(text: str, base: str) -> "Json":
    """``HOST:TARGET[:ro]``; a relative HOST is below *base*.

    :raise Invalid: when *text* is none.
    """
    from os.path import normpath

    body = text.removesuffix(":ro")
    source, colon, target = body.rpartition(":")
    if not colon or not source or not target.startswith("/") or "\0" in text:
        raise _invalid(
            f"{text!r} is no directory to be seen inside", "write it like data:/data or /srv/data:/data:ro", "dir"
        )
    return {
        "source": normpath(source if source.startswith("/") else f"{base}/{source}"),
        "target": target,
        "read_only": body != text,
    }


def volume(text: str) -> "Json":
    """``NAME:/PATH[:ro]``, or ``NAME`` (``NAME:ro``) for a bare disk.

    :raise Invalid: when *text* is none.
    """
    body = text.removesuffix(":ro")
    name, _, target = body.partition(":")
    if not name or (target and not target.startswith("/")) or (":" in body and not target) or "\0" in text:
        raise _invalid(
            f"{text!r} is no volume", "write it like data:/var/lib/x, data:/x:ro, or data for a bare disk", "volume"
        )
    if name.startswith((".", "/")):
        raise _invalid(
            f"{name!r} is a path, and a volume has a name",
            "make one: lamella volume create NAME --size 10GiB; directories are a wasm module's: --dir",
            "volume",
        )
    return {"volume": name, "target": target, "read_only": body != text}


def public_keys(text: str, where: str) -> list[str]:
    """The authorized_keys lines of *text*, which was found in *where*.

    :raise Invalid: when it holds a private key, or no key.
    """
    if "PRIVATE KEY" in text:
        raise _invalid(
            f"{where} is a private key, which belongs to nobody else",
            f"give its public half, most often {where}.pub",
            "ssh-key",
        )
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    wrong = next((key for key in keys if not _is_key(key)), None)
    if wrong is not None or not keys:
        raise _invalid(
            f"{where} holds no public key"
            if wrong is None
            else f"{where} has a line that is no public key: {wrong[:40]!r}",
            "give a file of lines like ssh-ed25519 AAAA... name, as ssh-keygen writes them into FILE.pub",
            "ssh-key",
        )
    return keys


def _is_key(line: str) -> bool:
    # Options may stand before the type (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
    return any(word.startswith(KEY_TYPES) for word in line.split()[:-1]) and line.isprintable()


def certificate(text: str, where: str) -> str:
    """The PEM certificate *text*, which was found in *where*.

    :raise Invalid: when it is none.
    """
    if "PRIVATE KEY" in text:
        raise _invalid(
            f"{where} holds a private key", "give a file with the certificate alone", "secure-boot-certificate"
        )
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise _invalid(
            f"{where} holds no certificate in PEM",
            f"if it is DER: openssl x509 -inform der -in {where} -out cert.pem",
            "secure-boot-certificate",
        )
    return text


def secured(board: "Json") -> "Json":
    """*board* with what Secure Boot brings along: UEFI.

    :raise Invalid: when BIOS is asked for with it.
    """
    if not board.get("secure_boot"):
        return board
    if board.get("firmware") == "bios":
        raise _invalid("Secure Boot is UEFI's, and BIOS is asked for", "leave out one of them", "firmware")
    return {**board, "firmware": "uefi"}
