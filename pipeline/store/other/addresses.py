"""Addresses that no object is read from, because what answers there gives away secrets of the machine that asks.

Clouds serve the credentials of a machine at a link-local address. A list of images, a DNS entry or a redirect could
lead a job there. So each address is looked at when a socket is made for it, after all names are resolved.
"""

import ipaddress
import socket
from typing import Any

# Metadata services that are not link-local: AWS by IPv6, Alibaba, Azure, Oracle.
_METADATA = {ipaddress.ip_address(one) for one in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")}
_METADATA_NAMES = ("metadata.google.internal", "metadata.goog")  # for a proxy, which resolves the name itself
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an address of IPv4

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedAddressError(PermissionError):
    """An object lies where nothing is read."""


def checked_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an entry of `getaddrinfo`. RefusedAddressError if nothing is read from there."""
    family, kind, protocol, _, place = address
    check_host(str(place[0]))
    return socket.socket(family, kind, protocol)


def check_host(host: str) -> None:
    """RefusedAddressError if `host` is an address that nothing is read from, or the name of one. Other names pass."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        if host.lower().rstrip(".").endswith(_METADATA_NAMES):
            raise RefusedAddressError(f"{host} is the metadata of a machine; no object is read from there") from None
        return
    for one in (address, *_inside(address)):
        if one.is_link_local or one.is_multicast or one.is_unspecified or one in _METADATA:
            raise RefusedAddressError(
                f"{host} is a link-local address or the metadata of a machine; no object is read from there"
            )


def _inside(address: _Address) -> list[_Address]:
    """The addresses of IPv4 that an address of IPv6 stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    given = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        given.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in given if one is not None]
