"""Errors before and around a measurement. Errors inside one are data: see `record.Record.error`."""


class LoadTestError(Exception):
    """The load cannot be run as asked; the message says what to change."""


class Refused(LoadTestError):
    """A server answers, and will not do what is asked of it: waiting for it does not help."""
