"""What can go wrong before and around a measurement. What goes wrong inside one is data: see `record.Record.error`."""


class LoadTestError(Exception):
    """The load cannot be run as asked; the message says what to change."""
