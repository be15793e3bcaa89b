"""Exceptions of the libraries that decode images -> ImageErrors, with the reason on one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from pipeline.errors import ErrorCode, ImageError


@contextmanager
def as_image_error(format_name: str) -> Iterator[None]:
    """Turn any exception of a library into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # only if other code set Pillow's own limit again
        raise ImageError(ErrorCode.TOO_LARGE, f"{format_name}: {error}") from error
    except MemoryError:  # at most `max_pixels` by the header: the machine is short of memory
        raise ImageError(ErrorCode.TOO_LARGE, f"{format_name}: too little memory to decode the image") from None
    except Exception as error:  # Pillow's plugins raise some fifteen types for broken files
        raise ImageError(ErrorCode.DECODE_FAILED, f"{format_name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The error's message on one short line."""
    text = " ".join(str(error).split())[:200]
    if text == "not identified by this driver":  # ImageFile's message if a plugin read to the end of the file
        return "its header has no image size"
    # Plugins raise SyntaxError and OSError with a clear message; other messages make sense only with the type's name.
    if text and isinstance(error, (SyntaxError, OSError)):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")
