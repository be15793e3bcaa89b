"""What jobs print on standard output: tables and lines, in which text of others stays text; times and money."""

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.shown_text import shown


class _TextConsole(Console):
    """A console on which a string, also in a cell of a table, shows its characters and nothing else.

    rich would read `[red]` in the name of a class as markup and `:cat:` as a picture, and would pass on most escape
    sequences.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **{**options, "markup": False, "emoji": False})


def output_console() -> Console:
    """The console of standard output, without colours for numbers and without breaks in long lines."""
    return _TextConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(line: str) -> None:
    """Print one line on standard output."""
    output_console().print(line)


def hms(seconds: float) -> str:
    """`1:02:03`"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def dollars(amount: float) -> str:
    """`1,234.50`; two digits of less than one."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"
