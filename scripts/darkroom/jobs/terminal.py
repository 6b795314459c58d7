"""Tables and times as text for a terminal."""


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of equal length as aligned columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds; less than none is none."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
