"""Plain monospaced tables of metric results."""

from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """`value` as text; "n/a" for -1 or None, which mean that there was nothing to average."""
    if value is None or value == -1:
        return "n/a"
    return f"{value:.{digits}f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first to the left, the others to the right.

    Args:
      header: list of c column names.
      rows: list of lists of c strings.
    Returns:
      One string without a trailing newline.
    """
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
