"""The URL under which another program finds an image: --image-url-prefix FROM=TO."""

from urllib.parse import quote

from pipeline.errors import RunError


def read_prefixes(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """(prefix of keys, its replacement) pairs, the longest prefix first. RunError if one is no pair."""
    pairs = []
    for one in given:
        # A key may hold "=", a URL behind it begins with its scheme or a slash.
        before, _, after = one.partition("=")
        if not before or not after:
            raise RunError(
                f"--image-url-prefix {one!r} must be FROM=TO, such as s3://my-bucket/=https://images.example/"
            )
        pairs.append((before, after))
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def url_of(image_key: str, prefixes: list[tuple[str, str]]) -> str:
    """The URL of an image. What stands behind a replaced prefix is escaped for web servers, which s3:// and gs:// are
    not; a key that no prefix fits stays as it is."""
    found = replaced(image_key, prefixes)
    if found is None:
        return image_key
    after, rest = found
    is_web = after.startswith(("http://", "https://", "/"))
    return after + (quote(rest) if is_web else rest)


def replaced(image_key: str, prefixes: list[tuple[str, str]]) -> tuple[str, str] | None:
    """What replaces the prefix of a key, and the rest of the key; None if no prefix fits."""
    for before, after in prefixes:
        if image_key.startswith(before):
            return after, image_key.removeprefix(before)
    return None
