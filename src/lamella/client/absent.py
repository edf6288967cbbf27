"""Why the daemon could not be reached, as a sentence with what to do."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.client.address import Address
    from lamella.model.errors import LamellaError

_START = (
    "start it with `lamellad` as root, or `./dev up` in a checkout; "
    "--host, LAMELLA_HOST and LAMELLA_HOME say where it is looked for"
)


def unreachable(address: "Address", error: Exception) -> "LamellaError":
    """What to raise instead of *error*, which connecting to *address* raised."""
    from lamella.model.errors import Forbidden, Unavailable

    if isinstance(error, PermissionError):
        return Forbidden(
            f"the daemon's socket {address} is not yours to open",
            hint="become root, or a member of the group `lamella` (then log in again)",
        )
    if isinstance(error, FileNotFoundError):
        why = "there is no such socket"
    elif isinstance(error, ConnectionRefusedError):
        why = "nobody listens there"
    elif isinstance(error, TimeoutError):
        why = "it does not answer in time"
    else:
        why = str(error) or type(error).__name__
    return Unavailable(f"no Lamella daemon at {address}: {why}", hint=_START)


def broken(address: "Address", error: Exception) -> "LamellaError":
    """What to raise instead of *error*, which happened when a connection to *address* was up."""
    from lamella.model.errors import DeadlineExceeded, Unavailable

    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"the daemon at {address} did not answer in time", hint="`lamella doctor` may say why")
    return Unavailable(
        f"the connection to the daemon at {address} broke: {str(error) or type(error).__name__}",
        hint="what was acknowledged is kept; ask again when the daemon is up",
    )
