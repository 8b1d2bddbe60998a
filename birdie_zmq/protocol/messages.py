"""The messages between processes, as typed, frozen records.

There are four conversations::

    client ⇄ broker          OpenSession Submit Ping CloseSession
                             ⇄ SessionOpened Answered PartlyAnswered Progressed ItemFailed BatchFailed Notice Pong
    worker ⇄ broker          RegisterWorker Heartbeat DrainWorker CloseWorker Lease…
                             ⇄ WorkerRegistered Lease CancelLease Pong
    agent ⇄ model process    StartModel StartFollower Lease CancelLease
                             ⇄ ModelLoaded ModelLoadFailed ModelNotice PhaseChanged ModelHeartbeat Lease…
    broker → any peer        Refusal

A *batch* is the work of one Submit, numbered by the client. A *lease* is one attempt at a batch or a sub-batch, numbered by
the broker and held by one worker. Indices count the items of the work in the same message; in an answer, they count the
items of the batch or lease that it answers.

Frames pass an agent unchanged between broker and model process: it reads a message and forwards its bytes.

This module has no encoding and no sockets: `codec` encodes messages, and `packing` their items.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from birdie_zmq.protocol.items import Indices, PackedAnswers, PackedWork
from birdie_zmq.types import (
    ComputeCounters,
    Count,
    ErrorReport,
    Level,
    ModelSpec,
    Name,
    PositiveCount,
    RankInfo,
    RequestArguments,
    Seconds,
    StepLimits,
)

WIRE_VERSION = 16
"""Increased whenever a message changes so that an older peer would misread it."""

# --- Client to broker ------------------------------------------------------------------------------------------------


class OpenSession(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open-session"):
    """The first message of a client."""

    package_version: Name


class Submit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="submit"):
    """A batch of work for a model, numbered by the client.

    ``identity`` is the model's identity if the client knows it, else None: no other model may answer. ``prefix`` names the
    common prefix of all texts, so that the broker prefers a worker that has already computed this prefix.
    """

    batch: Count
    model: ModelSpec
    work: PackedWork
    limits: StepLimits = StepLimits()
    identity: Name | None = None
    prefix: Name | None = None


class Ping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ping"):
    """A heartbeat of the client; the broker answers with Pong."""


class CloseSession(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="close-session"):
    """The client ends its session; the broker drops its queued work."""


ClientMessage = OpenSession | Submit | Ping | CloseSession


# --- Broker to client ------------------------------------------------------------------------------------------------


class SessionOpened(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="session-opened"):
    """The answer to OpenSession. The broker drops the work of a client that is silent for ``timeout_s``."""

    package_version: Name
    timeout_s: Seconds


class Answered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="answered"):
    """Answers to some items of a batch; ``indices`` names the item of each."""

    batch: Count
    indices: Indices
    answers: PackedAnswers


class PartlyAnswered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="partly-answered"):
    """What some items of a batch have of their answers so far; the whole answers follow in `Answered`."""

    batch: Count
    indices: Indices
    answers: PackedAnswers


class Progressed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="progressed"):
    """What was computed for a batch or a sub-batch since the last report."""

    batch: Count
    progress: ComputeCounters


class ItemFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="item-failed"):
    """One item of a batch failed; the other items are still computed."""

    batch: Count
    index: Count
    error: ErrorReport


class BatchFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="batch-failed"):
    """All unanswered items of a batch failed."""

    batch: Count
    error: ErrorReport


class Notice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="notice"):
    """A log line for the user while the batch is computed; with ``once``, shown once per run however many batches send it."""

    batch: Count
    level: Level
    text: str
    once: bool = False


class Pong(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pong"):
    """The answer to a Ping or a Heartbeat, with the number of workers.

    ``model_switches`` counts the model switches of workers since the broker started, ``retries`` the leases that were retried
    because a worker or its model process died.
    """

    workers: Count
    model_switches: Count = 0
    retries: Count = 0


BrokerToClient = SessionOpened | Answered | PartlyAnswered | Progressed | ItemFailed | BatchFailed | Notice | Pong


# --- Worker to broker ------------------------------------------------------------------------------------------------


class RegisterWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="register-worker"):
    """The first message of a worker.

    ``capacity`` is the number of leases that it may hold at once. ``model`` is the model that it has loaded already, for
    example if the broker was restarted. ``request_arguments`` names the arguments for which it does not load a model again.
    """

    package_version: Name
    engine: Name
    host: Name
    process_id: Count
    capacity: PositiveCount
    model: ModelSpec | None = None
    request_arguments: RequestArguments = ()


class Heartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="heartbeat"):
    """A heartbeat of the agent, with the phase and the model of its model process.

    ``computed`` counts the work of all model processes of this agent. ``request_arguments`` is as in `RegisterWorker`.
    """

    phase: Name
    model: ModelSpec | None = None
    request_arguments: RequestArguments = ()
    computed: ComputeCounters = ComputeCounters()


class LeaseAnswered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-answered"):
    """Answers to some items of a lease; ``indices`` as in `Answered`."""

    lease: Count
    indices: Indices
    answers: PackedAnswers


class LeasePartlyAnswered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-partly-answered"):
    """What some items of a lease have of their answers so far; `LeaseAnswered` follows for each."""

    lease: Count
    indices: Indices
    answers: PackedAnswers


class LeaseProgressed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-progressed"):
    """What the model process has computed since its last report, sent at most twice a second while it has a lease."""

    lease: Count
    progress: ComputeCounters


class LeaseFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-failed"):
    """A lease ends with an error; ``index`` names the item at fault if it is a single one."""

    lease: Count
    error: ErrorReport
    index: Count | None = None


class LeaseCrashed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-crashed"):
    """The model process died while computing this lease, which may be the cause; ``error`` describes how it died."""

    lease: Count
    error: ErrorReport


class LeaseReturned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-returned"):
    """A lease ends for a reason unrelated to it; the broker assigns its unanswered items again."""

    lease: Count


class LeaseDone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-done"):
    """Every item of a lease has been answered."""

    lease: Count


class LeaseNotice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease-notice"):
    """A log line for the user of this lease; ``once`` as in `Notice`."""

    lease: Count
    level: Level
    text: str
    once: bool = False


class DrainWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="drain-worker"):
    """The worker will exit after its current leases; the broker sends it no more leases."""


class CloseWorker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="close-worker"):
    """The worker shuts down cleanly; the broker assigns its leases to other workers."""


LeaseMessage = LeaseAnswered | LeasePartlyAnswered | LeaseProgressed | LeaseFailed | LeaseDone | LeaseNotice
WorkerMessage = RegisterWorker | Heartbeat | LeaseMessage | LeaseCrashed | LeaseReturned | DrainWorker | CloseWorker


# --- Broker to worker ------------------------------------------------------------------------------------------------


class WorkerRegistered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="worker-registered"):
    """The answer to RegisterWorker. The broker removes a worker that sends no heartbeat for ``timeout_s``."""

    package_version: Name
    timeout_s: Seconds


class Lease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lease"):
    """Work assigned to one worker; ``attempt`` counts from 1 how often it, or a larger lease that contained it, was sent.

    A broker that is started again begins at another number, so that no number names two leases of one worker.
    """

    lease: Count
    attempt: PositiveCount
    model: ModelSpec
    work: PackedWork
    limits: StepLimits = StepLimits()
    identity: Name | None = None


class CancelLease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cancel-lease"):
    """No client waits for a lease any more: the worker may drop it and need not answer."""

    lease: Count


BrokerToWorker = WorkerRegistered | Lease | CancelLease | Pong


class Refusal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="refusal"):
    """The broker refuses a message for this reason. This record is the same in every wire version."""

    error: ErrorReport


# --- Agent and model process -----------------------------------------------------------------------------------------


class WorkerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a worker that each of its model processes needs.

    ``engine`` is the name of a built-in engine or the path of a file, ``api`` the path of the user module, None for the
    built-in one. ``rank`` is the rank of the process in its process group, None where it holds the model alone.
    ``checkpoint_folders`` and ``hub`` are the checkpoint policy, as in `birdie_zmq.models.checkpoint_policy`.
    ``swap_weights`` says whether SwapWeights may follow.
    """

    engine: Name
    api: Name | None = None
    rank: RankInfo | None = None
    checkpoint_folders: tuple[Name, ...] | None = None
    hub: bool = True
    swap_weights: bool = False


class StartModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="start-model"):
    """The first message to a model process. ``start_count`` is the number of model processes started, this one included."""

    model: ModelSpec
    start_count: PositiveCount
    config: WorkerConfig


class SwapWeights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="swap-weights"):
    """Load the weights of another model, with the same arguments, in place of those that are loaded.

    The process has no lease then, and gets none before it answers: with ModelLoaded, ModelLoadFailed or SwapRefused.
    """

    model: ModelSpec


class SwapRefused(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="swap-refused"):
    """The other model differs in more than its weights, so it needs a process of its own; nothing was changed."""

    reason: str


class StartFollower(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="start-follower"):
    """The only message to the model process of a follower rank, which gets the model from rank 0."""

    config: WorkerConfig


class ModelLoaded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-loaded"):
    """The model process is ready for leases.

    ``request_arguments`` names the arguments that its user module ignores: it serves leases with other values of them.
    """

    seconds: Annotated[float, Meta(ge=0)]
    request_arguments: RequestArguments = ()


class ModelLoadFailed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-load-failed"):
    """The model cannot be loaded; the process ends after this."""

    error: ErrorReport


class ModelNotice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-notice"):
    """A log line for the users who wait until the model is loaded."""

    level: Level
    text: str


class PhaseChanged(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="phase-changed"):
    """The current phase of the model process; ``detail`` says more, such as the shapes that are compiled."""

    phase: Literal["compiling", "running"]
    detail: Name = ""


class ModelHeartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model-heartbeat"):
    """A heartbeat of the model process; ``steps`` grows with every computation, so that a stall can be detected."""

    steps: Count
    computed: ComputeCounters = ComputeCounters()


AgentMessage = StartModel | SwapWeights | Lease | CancelLease
ModelProcessMessage = (
    ModelLoaded | ModelLoadFailed | SwapRefused | ModelNotice | PhaseChanged | ModelHeartbeat | LeaseMessage
)

Message = (
    ClientMessage
    | BrokerToClient
    | WorkerMessage
    | BrokerToWorker
    | AgentMessage
    | StartFollower
    | ModelProcessMessage
    | Refusal
)
