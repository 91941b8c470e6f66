"""Posts to URLs that people registered, and to nothing inside of our own network.

The name is looked up once, every address that it has must be a public one, and the connection goes to the address
that was checked: a name that changes its address between check and connection leads nowhere else. Redirects are not
followed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.domain.errors import CorrigendaError, InvalidInput

TIMEOUT_SECONDS = 5.0
MAX_URL_CHARS = 2_000
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Public addresses that stand for any of IPv4, private ones too."""


class WebhookRefused(CorrigendaError):
    """A receiver that did not take a message: it does not answer, or answers with no success."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A URL that may be posted to."""

    url: str
    """The same URL with the address that was checked in place of the name."""
    host: str
    """The name, with its port if it is named, for the header Host."""
    name: str
    """The name alone, which the receiver's certificate must be for."""


def checked(url: str, *, allow_private: bool = False) -> Target:
    """Return where a message may go.

    Args:
        url: what somebody registered.
        allow_private: whether addresses of private networks are good too, and http without TLS.

    Raises:
        InvalidInput: if it is no such URL, or leads where nothing of ours may be reached.
    """
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidInput(f"url: expected a URL, got one that does not parse: {error}") from error
    schemes = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in schemes or not name or len(url) > MAX_URL_CHARS or not url.isprintable() or " " in url:
        raise InvalidInput(f"url: expected {' or '.join(schemes)}://host/path, got {url!r:.120}")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInput("url: expected a URL without user, password and fragment, got one with them")
    address = _address_of(name, port or 443, allow_private=allow_private)
    shown = f"[{address}]" if ":" in address else address
    netloc = shown if port is None else f"{shown}:{port}"
    return Target(url=parts._replace(netloc=netloc).geturl(), host=parts.netloc, name=name)


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool = False) -> None:
    """Send a body to a URL; nothing of the answer but its status is read.

    Raises:
        InvalidInput: if nothing may be sent there.
        WebhookRefused: if it is not taken.
    """
    import httpx2

    target = checked(url, allow_private=allow_private)
    # No proxy of the environment: it would look the name up again.
    with httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client:
        request = client.build_request(
            "POST",
            target.url,
            content=body,
            headers={**headers, "Host": target.host},
            extensions={"sni_hostname": target.name},
        )
        try:
            answer = client.send(request, stream=True)
            answer.close()
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise WebhookRefused(f"expected {target.name} to answer, got {type(error).__name__}") from error
    if not answer.is_success:
        raise WebhookRefused(f"expected {target.name} to take the message with 2xx, got {answer.status_code}")


def _address_of(name: str, port: int, *, allow_private: bool) -> str:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"url: expected a host that can be looked up, got {name!r:.120}") from error
    addresses = [str(one[4][0]).partition("%")[0] for one in found]
    if not allow_private and not all(map(_is_public, addresses)):
        raise InvalidInput(f"url: expected a host with public addresses, got {name!r:.120}, which has another")
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_global and not address.is_multicast and address not in _NAT64
