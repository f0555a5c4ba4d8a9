"""Errors a user can mend: one clear line and an exit code instead of a traceback."""


class UserError(Exception):
    """The input is at fault; the message says what was seen, what is needed and what to do."""

    exit_code = 1


class UsageError(UserError):
    """The command line is at fault."""

    exit_code = 2
