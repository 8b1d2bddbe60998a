"""Every error that birdie-zmq raises, and the code under which each one travels.

The tree is split by whose fault it is, because that decides what a person does next:

    BirdieError
    ├── UsageError              the command line, model_args or an endpoint is wrong
    ├── ProtocolError           a peer sent what no peer should send
    │   ├── MalformedMessage
    │   ├── MessageTooLarge
    │   ├── VersionMismatch
    │   ├── UnknownPeer         the broker does not know this peer (it was restarted, or never greeted)
    │   └── NotAllowed          a key is missing, unknown or revoked, or is for another role
    ├── UnavailableError        a process that is needed does not answer
    │   ├── BrokerUnavailable
    │   ├── WorkerUnavailable
    │   └── GroupIncomplete     processes of a group that holds one model are missing
    ├── ModelError              the model, its tokenizer, its api.py or its engine
    │   ├── ApiPageError
    │   ├── EngineError
    │   ├── UnknownModelTag
    │   ├── ModelLoadError
    │   ├── ModelChanged
    │   ├── GroupMismatch       the processes of a group do not hold the same model
    │   ├── TokenizerError
    │   ├── ModelCallError
    │   ├── ModelOutputError
    │   ├── NonFiniteLogits
    │   ├── TokenOutOfVocabulary
    │   └── ModelProcessDied
    ├── RequestError            this one request cannot be answered, whatever the model does
    │   └── UnsupportedRequest
    └── InternalError           a fault of birdie-zmq itself

An error raised in a worker reaches the lm_eval prompt as the same class, with the same message and with
the traceback of the user's code as a note. ``code`` is the stable name on the wire: it never changes once released.
"""

from __future__ import annotations

from typing import ClassVar


class BirdieError(Exception):
    """Base of every error of this package.

    Args:
        message: What was wrong and what to do about it, in whole sentences.
        remote_traceback: The traceback text of the process in which the error happened, if it was another one.
    """

    code: ClassVar[str] = "error"
    _classes: ClassVar[dict[str, type[BirdieError]]] = {}

    def __init__(self, message: str, *, remote_traceback: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remote_traceback = remote_traceback
        if remote_traceback:
            self.add_note("The traceback in the worker:\n" + remote_traceback.rstrip())

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.code in BirdieError._classes:
            raise TypeError(f"{cls.__name__} and {BirdieError._classes[cls.code].__name__} share the code {cls.code!r}")
        BirdieError._classes[cls.code] = cls

    @staticmethod
    def from_code(code: str, message: str, remote_traceback: str | None = None) -> BirdieError:
        """Rebuild an error that came over the wire; a code from a newer version becomes a plain BirdieError."""
        known = BirdieError._classes.get(code)
        if known is None:
            return BirdieError(f"[{code}] {message}", remote_traceback=remote_traceback)
        return known(message, remote_traceback=remote_traceback)


class UsageError(BirdieError):
    """An argument, a setting or an endpoint cannot be used as given."""

    code = "usage"


class ProtocolError(BirdieError):
    """A message broke the protocol."""

    code = "protocol"


class MalformedMessage(ProtocolError):
    """Bytes that are not a message, or a message with wrong fields."""

    code = "malformed-message"


class MessageTooLarge(ProtocolError):
    """A message over the size that a peer accepts."""

    code = "message-too-large"


class VersionMismatch(ProtocolError):
    """Two processes speak different versions of the wire protocol."""

    code = "version-mismatch"


class UnknownPeer(ProtocolError):
    """The broker received work or a heartbeat from a peer that has not greeted it."""

    code = "unknown-peer"


class NotAllowed(ProtocolError):
    """A peer has no key that is let in, or sent what its key does not allow; trying again does not help."""

    code = "not-allowed"


class UnavailableError(BirdieError):
    """A process that is needed does not answer."""

    code = "unavailable"


class BrokerUnavailable(UnavailableError):
    """No broker answers at the endpoint."""

    code = "broker-unavailable"


class WorkerUnavailable(UnavailableError):
    """The broker has no worker, or lost the worker too often."""

    code = "worker-unavailable"


class GroupIncomplete(UnavailableError):
    """Not all processes of a group that holds one model together have come."""

    code = "group-incomplete"


class ModelError(BirdieError):
    """The model, its tokenizer or the page that loads it is at fault."""

    code = "model"


class UserModuleError(ModelError):
    """The api.py page cannot be imported, or lacks a function."""

    code = "api-page"


class EngineError(ModelError):
    """The engine that is to compute the model cannot be imported, or is none."""

    code = "engine"


class UnknownModelTag(ModelError):
    """The api.py page does not know the model tag."""

    code = "unknown-model-tag"


class ModelLoadError(ModelError):
    """``load_model`` or ``load_tokenizer`` raised, or returned what is no model."""

    code = "model-load"


class ModelChanged(ModelError):
    """A model process has loaded another model than the run began with."""

    code = "model-changed"


class GroupMismatch(ModelError):
    """The processes of a group have different pages, models or versions."""

    code = "group-mismatch"


class TokenizerError(ModelError):
    """The tokenizer lacks what is needed, or failed on a text."""

    code = "tokenizer"


class ModelCallError(ModelError):
    """The model's own function raised while it was computing."""

    code = "model-call"


class ModelOutputError(ModelError):
    """The model returned logits of a wrong shape or type."""

    code = "model-output"


class OutOfDeviceMemory(ModelError):
    """The device has no room for what is to be computed, not even in the smallest steps."""

    code = "out-of-device-memory"


class NonFiniteLogits(ModelError):
    """The model returned NaN or infinity where a score was to be read."""

    code = "non-finite-logits"


class TokenOutOfVocabulary(ModelError):
    """The tokenizer made a token id that the model has no logit for."""

    code = "token-out-of-vocabulary"


class ModelProcessDied(ModelError):
    """The process that holds the model ended by itself."""

    code = "model-process-died"


class RequestError(BirdieError):
    """One request cannot be answered as asked."""

    code = "request"


class UnsupportedRequest(RequestError):
    """The request asks for something that is not built yet."""

    code = "unsupported-request"


class InternalError(BirdieError):
    """A fault of birdie-zmq itself; please report it with the traceback."""

    code = "internal"
