"""TLS to a remote daemon: its certificate is checked, ours is shown."""

import ssl

from lamella.client.address import Address
from lamella.model.errors import Invalid


def context(address: Address) -> ssl.SSLContext:
    """TLS 1.2 or better, the daemon's name checked against ``address.authority`` or the system's authorities.

    :raise Invalid: when a certificate file cannot be read.
    """
    made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    made.set_alpn_protocols(["http/1.1"])
    try:
        if address.authority:
            made.load_verify_locations(address.authority)
        if address.certificate:
            made.load_cert_chain(address.certificate, address.key or None)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            f"a certificate file for {address} cannot be read: {error}",
            hint="LAMELLA_CA, LAMELLA_CERT and LAMELLA_KEY name PEM files",
        ) from error
    return made
