"""Every error Octavo raises on purpose.

OctavoError
├── BadRequest (ValueError)     the sender must change something; `param` names what
│   ├── PromptTooLong           prompt and asked-for tokens exceed the model's context
│   └── UnknownModel            no such model here; the message lists those that are
├── ConfigError (ValueError)    a setting is wrong; the message names it and a valid value
├── ModelError                  a checkpoint is missing, damaged or of an unsupported kind
├── Overloaded                  it would wait too long, or a queue is full; `retry_after` says when to try again
│   └── QuotaExceeded           its tenant has used up what it may use in a minute, or at once
├── DeadlineMissed              its first token cannot come in time, or it had not begun by then
├── ModelNotReady               the model is still loading (`retry_after` says when to try again) or has failed
└── EngineDead                  the engine stopped, or is stuck
    └── EngineStopped           it did while it ran the request
"""


class OctavoError(Exception):
    """Base of all errors Octavo raises on purpose."""


class BadRequest(OctavoError, ValueError):
    """The sender must change the request.

    Args:
        message: one sentence that says what to change.
        param: the offending parameter's name as the sender wrote it, or None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class PromptTooLong(BadRequest):
    """Prompt plus asked-for tokens do not fit the model's context or this shard's KV cache."""


class UnknownModel(BadRequest):
    """The `model` field names nothing that is served here."""


class ConfigError(OctavoError, ValueError):
    """A setting is wrong; the message names it and says which values are valid."""


class ModelError(OctavoError):
    """A checkpoint cannot be used: not found, damaged, or of a kind Octavo does not support."""


class Overloaded(OctavoError):
    """A request would wait too long, or a queue is full.

    Args:
        message: what is full, with numbers.
        retry_after: seconds after which a new try will be accepted, as predicted.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class QuotaExceeded(Overloaded):
    """The tenant of a request has a quota, and has used it up."""


class DeadlineMissed(OctavoError):
    """A request's first token cannot come by its deadline, or the request had not begun by then.

    Args:
        message: what would be possible, with numbers.
        retry_after: seconds after which a new try will be accepted, as predicted; None: nothing is known.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class ModelNotReady(OctavoError):
    """A model of this server cannot answer now.

    Args:
        message: why, in a sentence.
        retry_after: seconds after which to try again; None for a model that has failed.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class EngineDead(OctavoError):
    """The engine's thread has stopped; nothing more will come from this shard."""


class EngineStopped(EngineDead):
    """The engine stopped while this request ran there: what was in flight is lost, and the request may be to blame."""
