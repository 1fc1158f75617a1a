"""Tables of reports, in which text is text."""
from __future__ import annotations

from typing import Any

from rich import table
from rich.text import Text

# Control characters, which would move the cursor of a terminal or colour it; lines and tabs are meant.
ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7f, 0xa0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """`text` with its control characters as \\x1b and the like: it may come from the name of a file."""
    return text.translate(ESCAPED)


class Table(table.Table):
    """A table of rich without markup and emoji codes.

    Titles, headers and cells hold names of files, models and classes, whose brackets rich would read as markup: they
    would vanish, or raise an error.
    """

    def __init__(self, *headers: Any, title: Any = None, caption: Any = None, **more: Any) -> None:
        super().__init__(*map(_plain, headers), title=_plain(title), caption=_plain(caption), **more)

    def add_column(self, header: Any = "", *rest: Any, **more: Any) -> None:
        super().add_column(_plain(header), *rest, **more)

    def add_row(self, *cells: Any, **more: Any) -> None:
        super().add_row(*map(_plain, cells), **more)


def _plain(content: Any) -> Any:
    if isinstance(content, Text) and printable(content.plain) != content.plain:
        return Text(printable(content.plain), content.style)
    return Text(printable(content)) if isinstance(content, str) else content
