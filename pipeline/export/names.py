"""File names of an export: from the keys of its images, without collisions on any file system.

A name is the part of image_key behind the folder that all keys share, without its last extension, so `s3://b/in/a/1.jpg`
becomes `a/1`, to which a format adds `.png`. The rules, which make names of different keys different:

1. Characters that some file system refuses (`\\ : * ? " < > |`, control characters), `%`, `~`, `#` (which separates a
   container from a name in it), a dot or a space at an end of a part, and the last dot of a part that ends like a file
   that an export writes (`a.png`, which a format may make a folder) are written as %XX of their UTF-8 bytes.
2. Names that are equal to others but for case, Unicode's composition or the extension that was cut off get `~` and 16
   hex digits of the SHA-256 of the key. So do parts of more than 150 bytes, which are cut off, and Windows' device
   names.
"""

import hashlib
import re
import unicodedata

_ENDINGS = ("png", "jpg", "txt", "json", "xml", "csv", "jsonl", "parquet", "geojson", "gpkg", "yaml")
_REFUSED = re.compile(r'[\\:*?"<>|%~#\x00-\x1f\x7f]|^[ .]+|[ .]+$')
_EXTENSION = re.compile(r"(?<=[^/#])\.[A-Za-z0-9]{1,5}\Z")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?$", re.IGNORECASE)
_MOST_BYTES = 150  # of a part; 255 with our ending and an extension


def shared_folder(first_key: str, last_key: str) -> str:
    """The folder (or container) of all keys between two keys, with the `/` or `#` at its end; "" if there is none."""
    same = 0
    for a, b in zip(first_key, last_key, strict=False):
        if a != b:
            break
        same += 1
    cut = max(first_key.rfind("/", 0, same), first_key.rfind("#", 0, same))
    return first_key[: cut + 1]


def extension_of(image_key: str) -> str:
    """The extension that the name of an image does not have, with its dot; "" if there is none."""
    found = _EXTENSION.search(image_key)
    return "" if found is None else found[0]


def plain_name(image_key: str, folder: str) -> str:
    """Rule 1: the name of an image unless rule 2 applies."""
    below = image_key.removeprefix(folder)
    below = below.removesuffix(extension_of(below))
    parts = (_like_no_file(_escaped(part)) for part in below.split("/"))
    return "/".join(part or "%" for part in parts)  # of `a//b`; nothing else gives a single %


def folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def needs_digest(name: str) -> bool:
    """Whether rule 2 applies to a plain name that is like no other."""
    return any(len(part.encode()) > _MOST_BYTES or _DEVICE.match(part) for part in name.split("/"))


def with_digest(name: str, image_key: str) -> str:
    """Rule 2: the name of an image whose plain name cannot stand."""
    cut = "/".join(_shortened(part) for part in name.split("/"))
    return f"{cut}~{hashlib.sha256(image_key.encode()).hexdigest()[:16]}"


def _shortened(part: str) -> str:
    short = part.encode()[:_MOST_BYTES].decode(errors="ignore")
    return f"{short}%" if short != part or _DEVICE.match(part) else part


def _like_no_file(part: str) -> str:
    stem, dot, ending = part.rpartition(".")
    return f"{stem}%2E{ending}" if dot and folded(ending) in _ENDINGS else part


def _escaped(part: str) -> str:
    return _REFUSED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), part)
