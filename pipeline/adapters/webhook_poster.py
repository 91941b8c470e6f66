"""Posts to URLs that people registered, and to nothing inside of our own network, unless a setting allows that.

The name is looked up once, every address that it has must be a public one, and the connection goes to the address
that was checked: a name that changes its address between check and connection leads nowhere else. Redirects are not
followed. A delivery ends in time however slowly its receiver talks.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.domain.errors import CorrigendaError, InvalidInput

TIMEOUT_SECONDS = 5.0
"""Of a connect, of a write and of a read."""
DELIVERY_SECONDS = 10.0
"""Of all of them together: a receiver that sends a byte at a time never exceeds the time of a read."""
MAX_URL_CHARS = 2_000
_ENDING_IN_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
_LEADING_INSIDE = (*_ENDING_IN_IPV4, *map(ipaddress.ip_network, ("2002::/16", "fec0::/10")))
"""Addresses that count as public: those of NAT64, 6to4 and others stand for any of IPv4, private ones too; the last are
those of a site."""
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16", "fe80::/10",  # link-local, where most clouds answer
            "fd00:ec2::/32", "fd20:ce::/64", "fd00:c1::/32", "100.100.100.200", "168.63.129.16",  # where others do
        ),
    )
)  # fmt: skip
"""A cloud's metadata, which gives whoever asks its machine's credentials: nobody has a receiver there."""


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
        allow_private: whether addresses of private networks are good too, and http without TLS. A cloud's metadata
            and other link-local addresses never are.

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
    if not parts.netloc.isascii():
        raise InvalidInput(f"url: expected a host in ASCII, as xn--… for other letters, got {name!r:.120}")
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
        try:
            with _deadline(DELIVERY_SECONDS) as trace:
                request = client.build_request(
                    "POST",
                    target.url,
                    content=body,
                    headers={**headers, "Host": target.host},
                    extensions={"sni_hostname": target.name, "trace": trace},
                )
                answer = client.send(request, stream=True)
                answer.close()
        except httpx2.TimeoutException as error:
            raise WebhookRefused(f"expected {target.host} to answer in {TIMEOUT_SECONDS:g} s, got nothing") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise WebhookRefused(f"expected {target.host} to answer, got: {str(error) or 'it hung up'}") from error
    if not answer.is_success:
        leads = ", which leads elsewhere and is not followed" if answer.is_redirect else ""
        raise WebhookRefused(f"expected {target.host} to take the message with 2xx, got {answer.status_code}{leads}")


@contextmanager
def _deadline(seconds: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Hang up on the connection that is told of by a request's trace, if it is still open after a time."""
    own: list[socket.socket] = []

    def trace(event: str, info: Mapping[str, Any]) -> None:
        # TLS takes the socket away from whom has it, so this one is our own; both stand for the same connection.
        if event == "connection.connect_tcp.complete":
            own.append(info["return_value"].get_extra_info("socket").dup())

    def hang_up() -> None:
        for connection in own:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
        for connection in own:
            connection.close()


def _address_of(name: str, port: int, *, allow_private: bool) -> str:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"url: expected a host that can be looked up, got {name!r:.120}") from error
    addresses = [str(one[4][0]).partition("%")[0] for one in found]
    if any(map(_is_metadata, addresses)):
        raise InvalidInput(f"url: expected the host of a receiver, got {name!r:.120}, which is link-local or metadata")
    if not allow_private and not all(map(_is_public, addresses)):
        raise InvalidInput(f"url: expected a host with public addresses, got {name!r:.120}, which has another")
    return addresses[0]


def _is_metadata(text: str) -> bool:
    address = ipaddress.ip_address(text)
    stands_for = [address]
    if isinstance(address, ipaddress.IPv6Address):
        # What is carried to IPv4: mapped, NAT64 and compatible ones have it at their end, 6to4 behind its prefix.
        if address.ipv4_mapped or any(address in one for one in _ENDING_IN_IPV4):
            stands_for.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        stands_for += [address.sixtofour] if address.sixtofour else []
    return any(one in network for one in stands_for for network in _NEVER)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_global and not address.is_multicast and not any(address in one for one in _LEADING_INSIDE)
