"""Errors keep their class, message and traceback when they are sent, and their codes are stable."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from birdie_zmq import errors
from birdie_zmq.errors import BirdieError

CODES = {
    "usage": "UsageError",
    "protocol": "ProtocolError",
    "malformed-message": "MalformedMessage",
    "message-too-large": "MessageTooLarge",
    "version-mismatch": "VersionMismatch",
    "unknown-peer": "UnknownPeer",
    "not-allowed": "NotAllowed",
    "unavailable": "UnavailableError",
    "broker-unavailable": "BrokerUnavailable",
    "worker-unavailable": "WorkerUnavailable",
    "group-incomplete": "ProcessGroupIncomplete",
    "model": "ModelError",
    "api-page": "UserModuleError",
    "engine": "EngineError",
    "unknown-model-tag": "UnknownModelTag",
    "model-load": "ModelLoadError",
    "incomplete-checkpoint": "IncompleteCheckpoint",
    "model-changed": "ModelChanged",
    "group-mismatch": "ProcessGroupMismatch",
    "tokenizer": "TokenizerError",
    "model-call": "ModelCallError",
    "model-output": "ModelOutputError",
    "out-of-device-memory": "OutOfDeviceMemory",
    "non-finite-logits": "NonFiniteLogits",
    "token-out-of-vocabulary": "TokenOutOfVocabulary",
    "model-process-died": "ModelProcessDied",
    "request": "RequestError",
    "unsupported-request": "UnsupportedRequest",
    "internal": "InternalError",
}
"""A literal list, because a released code never changes: add lines here, but do not change any."""


def subclasses(root: type[BirdieError] = BirdieError) -> Iterator[type[BirdieError]]:
    """Yield all subclasses of a class, recursively."""
    for below in root.__subclasses__():
        yield below
        yield from subclasses(below)


def test_error_codes_are_stable() -> None:
    assert {kind.code: kind.__name__ for kind in subclasses() if kind.__module__ == errors.__name__} == CODES


@pytest.mark.parametrize(("code", "name"), CODES.items())
def test_a_code_is_decoded_to_its_class(code: str, name: str) -> None:
    error = BirdieError.from_code(code, "what was wrong", "a traceback")

    assert type(error) is getattr(errors, name)
    assert (error.message, str(error)) == ("what was wrong", "what was wrong")
    assert error.remote_traceback == "a traceback"


def test_a_code_of_a_newer_version_is_kept_in_the_message() -> None:
    error = BirdieError.from_code("from-the-future", "what was wrong", "a traceback")

    assert type(error) is BirdieError
    assert error.message == "[from-the-future] what was wrong"
    assert error.remote_traceback == "a traceback"


def test_two_errors_cannot_share_a_code() -> None:
    with pytest.raises(TypeError, match="Another and UsageError share the code 'usage'"):
        type("Another", (BirdieError,), {"code": "usage"})

    assert type(BirdieError.from_code("usage", "what was wrong")) is errors.UsageError


def test_the_workers_traceback_is_shown_after_the_error() -> None:
    error = errors.ModelCallError("it failed", remote_traceback="Traceback:\n  in explode\n")

    shown = "".join(traceback.format_exception(error))
    assert shown.endswith("ModelCallError: it failed\nThe traceback in the worker:\nTraceback:\n  in explode\n")


@pytest.mark.parametrize("remote_traceback", [None, ""])
def test_without_a_traceback_there_is_no_note(remote_traceback: str | None) -> None:
    assert not hasattr(BirdieError("it failed", remote_traceback=remote_traceback), "__notes__")
