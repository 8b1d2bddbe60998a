"""The exceptions of birdie-zmq and their codes on the wire.

The tree is grouped by cause, because the cause decides what the user has to do::

    BirdieError
    ├── UsageError                  an option, a model argument or an endpoint is wrong
    ├── ProtocolError               a peer sent an invalid message
    │   ├── MalformedMessage
    │   ├── MessageTooLarge
    │   ├── VersionMismatch
    │   ├── UnknownPeer             the peer is not registered (the broker was restarted, or the peer sent no handshake)
    │   └── NotAllowed              a key is missing, unknown or revoked, or is for another role
    ├── UnavailableError            a required process does not answer
    │   ├── BrokerUnavailable
    │   ├── WorkerUnavailable
    │   └── ProcessGroupIncomplete  ranks of a process group that serves one model are missing
    ├── ModelError                  the model, its tokenizer, its user module (api.py) or its engine is at fault
    │   ├── UserModuleError
    │   ├── EngineError
    │   ├── UnknownModelTag
    │   ├── ModelLoadError
    │   │   └── IncompleteCheckpoint
    │   ├── ModelChanged
    │   ├── ProcessGroupMismatch    the ranks of a process group do not have the same model
    │   ├── TokenizerError
    │   ├── ModelCallError
    │   ├── ModelOutputError
    │   ├── OutOfDeviceMemory
    │   ├── NonFiniteLogits
    │   ├── TokenOutOfVocabulary
    │   └── ModelProcessDied
    ├── RequestError                one request cannot be answered; other requests can
    │   └── UnsupportedRequest
    └── InternalError               a bug in birdie-zmq itself

An error raised in a worker is raised again in the lm_eval process as the same class, with the same message and with the
traceback of the user's code as a note. ``code`` is the stable name on the wire: it never changes once released.
"""

from __future__ import annotations

from typing import ClassVar


class BirdieError(Exception):
    """Base class of all errors of this package.

    Args:
        message: The cause and the fix, in whole sentences.
        remote_traceback: The traceback text, if another process raised the error.
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
        """Return the error for a code that was received; a code of a newer version becomes a plain BirdieError."""
        known = BirdieError._classes.get(code)
        if known is None:
            return BirdieError(f"[{code}] {message}", remote_traceback=remote_traceback)
        return known(message, remote_traceback=remote_traceback)


class UsageError(BirdieError):
    """An argument, a setting or an endpoint is invalid."""

    code = "usage"


class ProtocolError(BirdieError):
    """A message violates the protocol."""

    code = "protocol"


class MalformedMessage(ProtocolError):
    """The bytes are not a message, or the message has invalid fields."""

    code = "malformed-message"


class MessageTooLarge(ProtocolError):
    """The message is larger than a peer accepts."""

    code = "message-too-large"


class VersionMismatch(ProtocolError):
    """Two processes use different versions of the wire protocol."""

    code = "version-mismatch"


class UnknownPeer(ProtocolError):
    """The broker received work or a heartbeat from a peer that has not opened a session or registered."""

    code = "unknown-peer"


class NotAllowed(ProtocolError):
    """A peer has no authorised key, or sent a message that its key does not allow; a retry does not help."""

    code = "not-allowed"


class UnavailableError(BirdieError):
    """A required process does not answer."""

    code = "unavailable"


class BrokerUnavailable(UnavailableError):
    """No broker answers at the endpoint."""

    code = "broker-unavailable"


class WorkerUnavailable(UnavailableError):
    """The broker has no worker, or its workers died too often."""

    code = "worker-unavailable"


class ProcessGroupIncomplete(UnavailableError):
    """Not all ranks of a process group that serves one model have joined."""

    code = "group-incomplete"


class ModelError(BirdieError):
    """The model, its tokenizer or the user module that loads it is at fault."""

    code = "model"


class UserModuleError(ModelError):
    """The user module (your ``api.py``) cannot be imported, or a function is missing from it."""

    code = "api-page"


class EngineError(ModelError):
    """The requested engine cannot be imported, or is not an engine."""

    code = "engine"


class UnknownModelTag(ModelError):
    """The user module does not know the model tag."""

    code = "unknown-model-tag"


class ModelLoadError(ModelError):
    """``load_model`` or ``load_tokenizer`` raised, or returned an invalid object."""

    code = "model-load"


class IncompleteCheckpoint(ModelLoadError):
    """A checkpoint is not committed yet, or a file of it is missing."""

    code = "incomplete-checkpoint"


class ModelChanged(ModelError):
    """A model process has loaded a different model from the one at the start of the run."""

    code = "model-changed"


class ProcessGroupMismatch(ModelError):
    """The ranks of a process group have different user modules, models or versions."""

    code = "group-mismatch"


class TokenizerError(ModelError):
    """The tokenizer lacks a required method or token, or failed on a text."""

    code = "tokenizer"


class ModelCallError(ModelError):
    """The model function raised an exception."""

    code = "model-call"


class ModelOutputError(ModelError):
    """The model returned logits with a wrong shape or dtype."""

    code = "model-output"


class OutOfDeviceMemory(ModelError):
    """The device runs out of memory even with the smallest steps."""

    code = "out-of-device-memory"


class NonFiniteLogits(ModelError):
    """The model returned NaN or plus infinity at a score position, or minus infinity for all tokens."""

    code = "non-finite-logits"


class TokenOutOfVocabulary(ModelError):
    """The tokenizer returned a token id outside the model's vocabulary."""

    code = "token-out-of-vocabulary"


class ModelProcessDied(ModelError):
    """The model process ended unexpectedly."""

    code = "model-process-died"


class RequestError(BirdieError):
    """One request cannot be answered."""

    code = "request"


class UnsupportedRequest(RequestError):
    """The request needs a feature that is not implemented."""

    code = "unsupported-request"


class InternalError(BirdieError):
    """A bug in birdie-zmq itself; please report it with the traceback."""

    code = "internal"
