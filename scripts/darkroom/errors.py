"""The errors a user sees: one line that says what is wrong, where, and what to do."""


class DarkroomError(Exception):
    """A stop with a clear message: bad configuration, a broken environment, a stale file."""


class RowError(Exception):
    """One row or request that cannot be used; the message is the recorded reason. Never stops a shard."""


class Interrupted(DarkroomError):
    """The job was asked to stop (SIGTERM) and has kept what it had finished."""
