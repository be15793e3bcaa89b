"""What the page needs beside the program: the extra `report`. Nothing heavy is imported here."""

from importlib.util import find_spec

from pipeline.errors import RunError

_EXTRA = "report"
HOW_TO_INSTALL = f"pip install 'm2f-pipeline[{_EXTRA}]'"


def is_installed() -> bool:
    return all(find_spec(name) is not None for name in ("vl_convert", "jinja2"))


def check_extra() -> None:
    """RunError if the libraries of the page are not installed."""
    if not is_installed():
        raise RunError(f"the report page needs the extra `{_EXTRA}`: {HOW_TO_INSTALL}")
