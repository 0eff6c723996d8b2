"""Tables for people: rows of words, aligned as plain text or as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_grid(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """Plain aligned text; the columns of `numbers` are flush right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    pads = [str.rjust if header in numbers else str.ljust for header in headers]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in (headers, ["-" * width for width in widths], *rows)
    )


def markdown_grid(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """A Markdown table; the columns of `numbers` are flush right."""
    rule = ["---:" if header in numbers else "---" for header in headers]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (headers, rule, *rows)
    )
