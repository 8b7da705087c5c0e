"""Names of computers: which of them is this one, and a place to listen at."""

import ipaddress
import re
import socket

from abmll.common.errors import ConfigError

BACKLOG = 2048  # connections that wait to be accepted


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


def listen_at(host: str, port: int) -> socket.socket:
    """A socket that listens there (port 0: any that is free). Raises ``ConfigError`` where nobody can."""
    listening = None
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise ConfigError(f"host, port: cannot listen at {host}:{port} ({error.strerror}); choose others") from error
    return listening
