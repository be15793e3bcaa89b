"""What a run reads: the inputs, and which of their objects are images. Workers get it with their arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import RunError
from pipeline.text.patterns import as_regex, without_wildcards

# auto: objects named *.tar or *.parquet hold images, every other object is an image.
InputFormat = Literal["auto", "images", "tar", "parquet", "manifest", "inventory"]

# What file managers and archivers leave behind, in any folder.
LEFT_BY_PROGRAMS = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", "__MACOSX/**", "**/__MACOSX/**")


@dataclass(frozen=True)
class Access:
    """How requests to an input are signed and paid."""

    anonymous: bool = False  # send no credentials: the bucket is public
    requester_pays: bool = False  # the account of the credentials (S3) or their project (Google) pays for the requests

    def options(self, protocol: str) -> dict[str, Any]:
        """Options for the file system of a protocol. RunError if its store has no such access."""
        if self.requester_pays and protocol not in _REQUESTER_PAYS:
            raise RunError(f"--requester-pays is for s3:// and gs://, not {protocol}://")
        if self.requester_pays and self.anonymous:
            raise RunError("--requester-pays needs the credentials that --anonymous leaves out; give one of them")
        anonymous = _ANONYMOUS.get(protocol) if self.anonymous else {}
        if anonymous is None:
            raise RunError(f"--anonymous is for {', '.join(f'{name}://' for name in _ANONYMOUS)}, not {protocol}://")
        return {**anonymous, **({"requester_pays": True} if self.requester_pays else {})}


OWN_ACCESS = Access()
_REQUESTER_PAYS = ("s3", "s3a", "gs", "gcs")
_ANONYMOUS: dict[str, dict[str, Any]] = {
    **{name: {"anon": True} for name in ("s3", "s3a", "az", "abfs", "abfss")},
    **{name: {"token": "anon"} for name in ("gs", "gcs")},
    "hf": {"token": False},
    **{name: {} for name in ("http", "https")},  # no credentials are sent anyway
}


@dataclass(frozen=True)
class Source:
    """One --input: a folder, prefix or object, and a pattern of paths below it; "" if the input has no wildcards."""

    uri: str  # absolute if local
    pattern: str = ""

    def __str__(self) -> str:
        return f"{self.uri.rstrip('/')}/{self.pattern}" if self.pattern else self.uri


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a run, and how to take images from them."""

    sources: tuple[Source, ...]
    # logits: the source is the table `logits` of an output, and nothing is read of the images that it names
    format: InputFormat | Literal["logits"] = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    key_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    allow_schemes: tuple[str, ...] = ()
    access: Access = OWN_ACCESS

    @classmethod
    def of(cls, *uris: str) -> "InputSpec":
        """Inputs without wildcards, with the defaults of all flags."""
        return cls(tuple(map(Source, uris)))

    @property
    def name(self) -> str:
        """The inputs in messages."""
        return f"--input {' '.join(map(str, self.sources))}"

    @property
    def names_columns(self) -> bool:
        """Whether flags name columns, which some input must have."""
        return bool(self.image_column or self.key_column or self.keep_columns)

    @property
    def names_its_images(self) -> bool:
        """Whether files name the images one by one. Else the images are all objects below the sources."""
        return self.format in ("manifest", "inventory", "logits")


def source_of(uri: str, is_there: Callable[[str], bool]) -> Source:
    """The source that `uri` names. An object or folder whose name holds wildcards is there, or it is a pattern.

    RunError if the pattern is malformed.
    """
    folder, pattern = without_wildcards(uri)
    if not pattern or is_there(uri):
        return Source(uri)
    check_patterns("--input", (pattern,))
    return Source(folder, pattern)


def check_patterns(flag: str, patterns: tuple[str, ...]) -> None:
    """RunError, with the name of the flag, if a pattern is malformed."""
    for pattern in patterns:
        try:
            as_regex(pattern)
        except ValueError as error:
            raise RunError(f"{flag} {pattern}: {error}") from None
