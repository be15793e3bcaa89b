"""Where processes listen, as the system's tables have it."""

import ipaddress
from collections.abc import Iterable

import psutil


def listening(pids: Iterable[int]) -> dict[str, set[str]]:
    """Name of the process -> addresses at which a process of this name waits for connections from the network."""
    found: dict[str, set[str]] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(process.name(), set()).add(connection.laddr.ip)
        except psutil.Error:  # the process has ended
            continue
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address; Ray's C++ code listens at `::ffff:127.0.0.1`."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
