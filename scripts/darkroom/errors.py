"""The errors a user sees: one line that says what is wrong, where, and what to do."""


class DarkroomError(Exception):
    """A stop with a clear message: bad configuration, a broken environment, a stale file.

    retryable: whether the same job can succeed when it is run once more, with more time or memory.
    """

    retryable = False


class RowError(Exception):
    """One row or request that cannot be used; the message is the recorded reason. Never stops a shard."""


class Interrupted(DarkroomError):
    """The job was asked to stop (SIGTERM, SIGURG) and has kept what it had finished."""

    retryable = True


class OutOfMemory(DarkroomError):
    """The memory of the host, or of the device, did not suffice."""

    retryable = True
