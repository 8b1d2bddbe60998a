"""Every message that crosses a process border, as a typed, frozen record.

Four conversations use them::

    client ⇄ broker     OpenSession Submit Ping CloseSession ⇄ SessionOpened Answered Advanced ItemFailed BatchFailed Notice Pong
    worker ⇄ broker     RegisterWorker Heartbeat DrainWorker CloseWorker Lease… ⇄ WorkerRegistered Lease CancelLease Pong
    agent ⇄ model process    LoadModel Lease CancelLease ⇄ ModelLoaded ModelRefused PhaseChanged Beat Lease…
    broker → anybody    Refusal

A *batch* is what a client submits under a number of its own. A *lease* is one attempt at a batch or a part of one,
numbered by the broker, held by one worker. Indices always count the items of the work in the same message or, in an answer, of the
batch or lease that it answers.

This module knows neither bytes nor sockets: `codec` turns messages into bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from birdie_zmq.types import (
    Answers,
    ComputeCounters,
    Count,
    ErrorReport,
    Indices,
    Level,
    ModelSpec,
    Name,
    PositiveCount,
    ProgressDelta,
    Seconds,
    StepLimits,
    Work,
)

WIRE_VERSION = 11
"""Raised whenever a message changes so that an older peer would misread it."""

# --- Client to broker ------------------------------------------------------------------------------------------------


class OpenSession(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open-session"):
    """The first message of a client."""

    package_version: Name


class Submit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="submit"):
    """Work for a model, under a number of the client's own.

    ``identity`` is that of the model as the client knows it, None before it does: no other model may answer.
    ``beginning`` names what all its texts begin with, where a worker that has computed it should have the others too.
    """

    batch: Count
    model: ModelSpec
    work: Work
    limits: StepLimits = StepLimits()
    identity: Name | None = None
    prefix: Name | None = field(default=None, name="beginning")


class Ping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ping"):
    """The client is still there, and asks whether the broker is."""


class CloseSession(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="close-session"):
    """The client wants nothing more; what it has queued is dropped."""


ClientMessage = OpenSession | Submit | Ping | CloseSession


# --- Broker to client ------------------------------------------------------------------------------------------------


class SessionOpened(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="session-opened"):
    """The greeting's answer. A client that is silent for ``timeout_s`` while it has work loses that work."""

    package_version: Name
    timeout_s: Seconds


class Answered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="answered"):
    """Answers to some items of a batch; ``indices`` int32[n] says to which."""

    batch: Count
    indices: Indices
    answers: Answers
    progress: ProgressDelta = field(default=ProgressDelta(), name="advance")


class Progressed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="advanced"):
    """A batch, or a part of it, has come on, though nothing new is answered."""

    batch: Count
    progress: ProgressDelta = field(name="advance")


class ItemFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="item-failed"):
    """One item of a batch will not be answered; the others are still worked on."""

    batch: Count
    index: Count
    error: ErrorReport


class BatchFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="batch-failed"):
    """Whatever of a batch has no answer yet will have none."""

    batch: Count
    error: ErrorReport


class Notice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="notice"):
    """A line that a person should see while their batch is worked on; ``once`` in a run, however many batches say it."""

    batch: Count
    level: Level
    text: str
    once: bool = False


class Pong(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pong"):
    """The answer to a Ping or a Heartbeat: the broker is there, with this many workers.

    Since the broker was started, ``switches`` counts how often a worker changed from one model to another, ``losses``
    how often what a worker or its model process was working on was lost and had to be done again.
    """

    workers: Count
    model_switches: Count = field(default=0, name="switches")
    retries: Count = field(default=0, name="losses")


BrokerToClient = SessionOpened | Answered | Progressed | ItemFailed | BatchFailed | Notice | Pong


# --- Worker to broker ------------------------------------------------------------------------------------------------


class RegisterWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="register-worker"):
    """The first message of a worker.

    ``capacity`` is how many leases it may hold at once, ``model`` what it has loaded already: it may have served a
    broker before this one.
    """

    package_version: Name
    engine: Name
    host: Name
    process_id: Count
    capacity: PositiveCount
    model: ModelSpec | None = None


class Heartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="heartbeat"):
    """The agent is there; what its model process does, and the model it is for.

    ``computed`` is what all model processes of this agent have computed.
    """

    phase: Name
    model: ModelSpec | None = None
    computed: ComputeCounters = ComputeCounters()


class LeaseAnswered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-answered"):
    """Answers to some items of a lease; ``indices`` as in `Answered`."""

    lease: Count
    indices: Indices
    answers: Answers
    progress: ProgressDelta = field(default=ProgressDelta(), name="advance")


class LeaseProgressed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-advanced"):
    """A lease has come on, though nothing new is answered: said where no answer was for half a second."""

    lease: Count
    progress: ProgressDelta = field(name="advance")


class LeaseFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-failed"):
    """A lease ends with an error; ``index`` names the item at fault where one is, and the others are not."""

    lease: Count
    error: ErrorReport
    index: Count | None = None


class LeaseCrashed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-crashed"):
    """The model process died while it was at this lease, which may be the cause; ``error`` says how it died."""

    lease: Count
    error: ErrorReport


class LeaseReturned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-returned"):
    """A lease ends through no fault of its own: what is unanswered is to be given to somebody again."""

    lease: Count


class LeaseDone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-done"):
    """Every item of a lease has been answered."""

    lease: Count


class LeaseNotice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-notice"):
    """A line for the person whose lease this is; ``once`` as in `Notice`."""

    lease: Count
    level: Level
    text: str
    once: bool = False


class DrainWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="drain-worker"):
    """The worker will go away once it has finished what it is working on; it wants no more leases."""


class CloseWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="close-worker"):
    """The worker goes away in good order; its leases are to be given to another."""


LeaseMessage = LeaseAnswered | LeaseProgressed | LeaseFailed | LeaseDone | LeaseNotice
WorkerMessage = RegisterWorker | Heartbeat | LeaseMessage | LeaseCrashed | LeaseReturned | DrainWorker | CloseWorker


# --- Broker to worker ------------------------------------------------------------------------------------------------


class WorkerRegistered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="worker-registered"):
    """The greeting's answer; a worker that sends no heartbeat for ``timeout_s`` is given up."""

    package_version: Name
    timeout_s: Seconds


class Lease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease"):
    """Work handed to one worker; ``attempt`` counts from 1 how often it, or more that it was part of, was handed out."""

    lease: Count
    attempt: PositiveCount
    model: ModelSpec
    work: Work
    limits: StepLimits = StepLimits()
    identity: Name | None = None


class CancelLease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cancel-lease"):
    """Nobody waits for a lease any more: it may be dropped, and no word of it is expected."""

    lease: Count


BrokerToWorker = WorkerRegistered | Lease | CancelLease | Pong


class Refusal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="refusal"):
    """The broker will not take a message, and says why. Its form is the same in every wire version."""

    error: ErrorReport


# --- Agent and model process -----------------------------------------------------------------------------------------


class LoadModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="load-model"):
    """The first message to a model process; ``api`` is the page to load, None for the built-in one."""

    model: ModelSpec
    api: Name | None
    start_count: PositiveCount = field(name="started")


class ModelLoaded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-loaded"):
    """The model process is ready for leases."""

    seconds: Annotated[float, Meta(ge=0)]


class ModelLoadFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-refused"):
    """The model cannot be loaded; the process ends after this."""

    error: ErrorReport


class ModelNotice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-notice"):
    """A line for whoever waits until the model is loaded."""

    level: Level
    text: str


class PhaseChanged(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="phase-changed"):
    """What the model process is doing now; ``detail`` says more, such as the shapes of what is compiled."""

    phase: Literal["compiling", "running"]
    detail: Name = ""


class ModelHeartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="beat"):
    """The model process is there; ``steps`` grows with everything that it computes, so standing still shows."""

    steps: Count
    computed: ComputeCounters = ComputeCounters()


AgentMessage = LoadModel | Lease | CancelLease
ModelProcessMessage = ModelLoaded | ModelLoadFailed | ModelNotice | PhaseChanged | ModelHeartbeat | LeaseMessage

Message = ClientMessage | BrokerToClient | WorkerMessage | BrokerToWorker | AgentMessage | ModelProcessMessage | Refusal
