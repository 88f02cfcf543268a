"""Hosts in addresses, as users and browsers write them."""

import ipaddress
from contextlib import suppress
from urllib.parse import urlsplit


def host_name(url: str) -> str:
    """The host of a URL in lower case; "" where there is none."""
    with suppress(ValueError):
        return (urlsplit(url).hostname or "").removesuffix(".")
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, which nobody else reaches."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
