"""Fetching an attestation report from inside a guest, through the kernel's own interface for every technology.

Source: Documentation/ABI/testing/configfs-tsm of Linux (6.7 and later): a directory made below ``report`` takes up to 64 bytes in
``inblob`` and then shows the report in ``outblob`` and who made it in ``provider``. ``generation`` grows by one with each write; another
number means that somebody wrote between.
"""

from collections.abc import Awaitable, Callable

import msgspec

from lamella.model.board import Confidential
from lamella.model.errors import Corrupt, Invalid, Unsupported
from lamella.model.stream import ExecSpec, Exit, ProcessStream, Stderr, Stdout

REPORTS = "/sys/kernel/config/tsm/report"
LONGEST_NONCE = 64
_LARGEST = 1 << 20
_PROVIDERS = {"sev_guest": Confidential.SEV_SNP, "tdx_guest": Confidential.TDX}

# One shell, so that the directory is gone whatever happens. The nonce comes as octal digits, which printf writes in one piece.
_SCRIPT = """set -e
[ -d "$1" ] || { echo "no $1" >&2; exit 3; }
d="$1/lamella-$$"
mkdir "$d"
trap 'rmdir "$d"' EXIT
printf "$2" > "$d/inblob"
cat "$d/provider"
cat "$d/outblob"
[ "$(cat "$d/generation")" = 1 ] || exit 4
"""

Execute = Callable[[ExecSpec], Awaitable[ProcessStream]]


class Attestation(msgspec.Struct, kw_only=True, frozen=True):
    """``report`` is what the processor signed, as it is: :mod:`snp_report` or :mod:`td_quote` reads it."""

    technology: Confidential
    report: bytes


async def attest(execute: Execute, nonce: bytes, *, reports: str = REPORTS) -> Attestation:
    """Have the guest ask its processor for a report on itself that contains *nonce*; *execute* runs a command in the guest, as root.

    :raise Invalid: when *nonce* is longer than 64 bytes, or empty.
    :raise Unsupported: when the guest's kernel has no such interface, or is not protected.
    :raise Corrupt: when the guest answers with something else.
    """
    if not 0 < len(nonce) <= LONGEST_NONCE:
        raise Invalid(
            f"a nonce has 1 to {LONGEST_NONCE} bytes, not {len(nonce)}", hint="give the digest of longer ones"
        )
    digits = "".join(f"\\{byte:03o}" for byte in nonce.ljust(LONGEST_NONCE, b"\0"))
    command = ["/bin/sh", "-c", _SCRIPT, "sh", reports, digits]
    stream = await execute(ExecSpec(command=command, user="0", timeout=60))
    out, said, code = b"", b"", None
    try:
        while (frame := await stream.receive()) is not None:
            match frame:
                case Stdout(data):
                    out += data
                case Stderr(data):
                    said = (said + data)[-2000:]
                case Exit(number):
                    code = number
            if len(out) > _LARGEST:
                raise Corrupt("the guest's report is larger than any")
    finally:
        await stream.close()
    words = said.decode(errors="replace").strip()
    if code == 3:
        raise Unsupported(
            f"the guest's kernel has no {reports}",
            hint="it needs Linux 6.7 or later, its driver sev-guest or tdx-guest, and configfs mounted",
        )
    if code == 4:
        raise Corrupt("somebody else in the guest wrote to the same report", hint="ask again")
    if code:
        raise Unsupported(f"the guest's processor gave no report: {words or f'the guest said {code}'}")
    return read(out)


def read(answer: bytes) -> Attestation:
    """The provider's name on a line, then the report. Pure.

    :raise Corrupt: when it is something else.
    """
    name, _, report = answer.partition(b"\n")
    technology = _PROVIDERS.get(name.decode(errors="replace"))
    if technology is None or not report:
        raise Corrupt(
            f"the guest's report is from {name[:32]!r}, which is not known", hint="sev_guest and tdx_guest are"
        )
    return Attestation(technology=technology, report=report)
