"""The errors a user sees: one line that says what is wrong, where, and what to do."""

import re


class DarkroomError(Exception):
    """Stops a job or a run with one line for the user: bad configuration, a broken environment, a stale file.

    Attributes:
        retryable: whether the same job can succeed if it is run once more, with more time or memory.
    """

    retryable = False


class RowError(Exception):
    """One row or request cannot be used; the message is the reason that is recorded. It never stops a shard."""


class Interrupted(DarkroomError):
    """The job was asked to stop (SIGTERM, SIGURG); what it had finished is kept."""

    retryable = True


class OutOfMemory(DarkroomError):
    """The host or the device ran out of memory."""

    retryable = True


def general(reason: str, length: int = 90) -> str:
    """A reason without the names and numbers that differ from one case to the next, of `length` characters at most."""
    reason = re.sub(r"^(image|source) .+?: ", r"\1: ", reason)
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason)
    reason = re.sub(r"\b\d+(\.\d+)?(e[+-]?\d+)?\b", "N", reason)
    return reason if len(reason) <= length else reason[: length - 1] + "…"
