"""Names of computers: which of them is this one."""

import ipaddress
import re


def is_loopback(host: str) -> bool:
    """Whether what listens there can be reached from this computer alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def is_address(name: str) -> bool:
    """Whether it is an address and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """The name or address in a ``Host`` header, without port, brackets and last dot, in lower case; "" for none."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(:\d*)?", host.strip().lower())
    return match[1].strip("[]").rstrip(".") if match else ""
