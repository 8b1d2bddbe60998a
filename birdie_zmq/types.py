"""The data that every layer shares: model specs, requests, answers, sampling parameters, run statistics.

The protocol encodes these records; the engine computes with them and does not import the protocol. A record of requests
holds many items, and `select` returns the same record for some of them.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from birdie_zmq.completions import Completion, CompletionWork
from birdie_zmq.errors import BirdieError
from birdie_zmq.request_params import Count as Count
from birdie_zmq.request_params import Duration as Duration
from birdie_zmq.request_params import Fraction as Fraction
from birdie_zmq.request_params import GenerationParams as GenerationParams
from birdie_zmq.request_params import LogitBias as LogitBias
from birdie_zmq.request_params import LogitsParams as LogitsParams
from birdie_zmq.request_params import Name as Name
from birdie_zmq.request_params import Penalty as Penalty
from birdie_zmq.request_params import PositiveCount as PositiveCount
from birdie_zmq.request_params import PositiveFraction as PositiveFraction
from birdie_zmq.request_params import RandomKey as RandomKey
from birdie_zmq.request_params import SamplingParams as SamplingParams
from birdie_zmq.request_params import Seconds as Seconds
from birdie_zmq.request_params import Temperature as Temperature
from birdie_zmq.request_params import TokenBias as TokenBias
from birdie_zmq.request_params import TokenId as TokenId
from birdie_zmq.request_params import TokenIds as TokenIds
from birdie_zmq.settings import GROUP_TIMEOUT_S

Level = Literal["info", "warning"]
RequestArgument = Literal[
    "chat_template_args", "enable_thinking", "max_gen_toks", "prefix_token_id", "seed", "think_end_token"
]
RequestArguments = Annotated[tuple[RequestArgument, ...], Meta(max_length=6)]
RequestArgumentValues = Annotated[tuple[tuple[RequestArgument, str], ...], Meta(max_length=6)]

REQUEST_ARGUMENTS: frozenset[RequestArgument] = frozenset(get_args(RequestArgument))
"""The request arguments: model_args that concern how requests are made and encoded, and not how a model is loaded."""

_MAX_ERROR_CHARACTERS = 100_000


def _sendable(text: str) -> str:
    """Return an error text in a form that can be sent: valid UTF-8, with the middle cut out of a very long text.

    The text comes from user code or a library, so it may have any length and may hold lone surrogates. The end is kept,
    since it is the most informative part.
    """
    if len(text) > _MAX_ERROR_CHARACTERS:
        half = _MAX_ERROR_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


class ErrorReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error as it is sent to another process; `birdie_zmq.errors` documents the codes."""

    code: Name
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BirdieError) -> ErrorReport:
        """Describe an error for another process, with the traceback of its cause, which is the user's code."""
        trace = error.remote_traceback
        if trace is None and error.__cause__ is not None:
            trace = "".join(traceback.format_exception(error.__cause__))
        return cls(
            code=error.code, message=_sendable(error.message), traceback=None if trace is None else _sendable(trace)
        )

    def to_error(self) -> BirdieError:
        """Return the same error, to be raised in this process."""
        return BirdieError.from_code(self.code, self.message, self.traceback)


class ModelSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The specification of a requested model: its tag and its arguments.

    ``arguments`` is a canonical JSON object of the keyword arguments for ``load_model`` in ``api.py``.
    ``request_arguments`` holds the request arguments, each with its value in JSON. A process that has loaded the model
    also serves other request arguments, if its user module ignores them: `without` returns what must be equal then.
    """

    tag: Name
    arguments: str = "{}"
    request_arguments: RequestArgumentValues = ()

    def __str__(self) -> str:
        text = self.arguments_text
        return self.tag if text == "{}" else f"{self.tag} {text}"

    @property
    def arguments_text(self) -> str:
        """All arguments as one JSON object, for people; it is not parsed, so it is as valid as its parts."""
        added = ", ".join(f'"{name}": {value}' for name, value in self.request_arguments)
        if not added:
            return self.arguments
        return f"{{{added}}}" if self.arguments == "{}" else f"{self.arguments[:-1]}, {added}}}"

    def all_arguments(self) -> dict[str, Any]:
        """Return all arguments by name.

        Raises:
            ValueError: The arguments are not JSON.
        """
        return {
            **json.loads(self.arguments),
            **{name: json.loads(value) for name, value in self.request_arguments},
        }

    def without(self, names: Collection[str]) -> ModelSpec:
        """Return the same specification without some of its request arguments."""
        kept = tuple(pair for pair in self.request_arguments if pair[0] not in names)
        if len(kept) == len(self.request_arguments):
            return self
        return ModelSpec(tag=self.tag, arguments=self.arguments, request_arguments=kept)


class RankInfo(Struct, frozen=True, forbid_unknown_fields=True):
    """The rank of a process in a process group: one process per host, all of them holding one model.

    ``num_processes`` is the number of processes, as in jax.distributed.initialize. Rank ``process_id`` 0 is the leader, which
    talks to the broker. ``coordinator`` is HOST:PORT of rank 0; None lets JAX detect it, as in a Slurm job. ``timeout_s`` is
    how long the processes wait for each other to join.
    """

    num_processes: PositiveCount
    process_id: Count
    coordinator: Name | None = None
    timeout_s: Seconds = GROUP_TIMEOUT_S

    @property
    def is_leader(self) -> bool:
        """Whether this process is rank 0, which talks to the broker."""
        return self.process_id == 0

    def __str__(self) -> str:
        return f"process {self.process_id} of {self.num_processes}"


# --- Work: the requests. `select` returns the unanswered items of a batch, to be retried after a worker died. --------


class LogLikelihoodWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="loglikelihood"):
    """Log-likelihood of each continuation after its context; items are ``(context, continuation)``."""

    pairs: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, indices: Sequence[int]) -> LogLikelihoodWork:
        """Return the same work for some of its items."""
        return LogLikelihoodWork(pairs=[self.pairs[i] for i in indices])


class RollingWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rolling"):
    """Log-likelihood of each whole text, by disjoint windows of the model's length."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> RollingWork:
        """Return the same work for some of its items."""
        return RollingWork(texts=[self.texts[i] for i in indices])


class GenerateWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="generate"):
    """A continuation of each prompt.

    ``keys`` holds a random key for each prompt if tokens are sampled, and is empty otherwise. Sampling depends on this key
    alone, not on the other prompts of a step.
    """

    prompts: list[str]
    settings: GenerationParams
    keys: list[RandomKey] = []

    def __post_init__(self) -> None:
        expected = len(self.prompts) if self.settings.sampling else 0
        if len(self.keys) != expected:
            raise ValueError(f"{len(self.prompts)} prompts need {expected} keys, not {len(self.keys)}")

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> GenerateWork:
        """Return the same work for some of its items."""
        return GenerateWork(
            prompts=[self.prompts[i] for i in indices],
            settings=self.settings,
            keys=[self.keys[i] for i in indices] if self.keys else [],
        )


class ChatWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="chat"):
    """Conversations to render with a tokenizer that has its own template method and no template text.

    ``template_args`` is a JSON object of further keyword arguments for that method.
    """

    conversations: list[list[dict[str, str]]]
    add_generation_prompt: bool
    template_args: str = "{}"

    def __len__(self) -> int:
        return len(self.conversations)

    def select(self, indices: Sequence[int]) -> ChatWork:
        """Return the same work for some of its items."""
        return ChatWork(
            conversations=[self.conversations[i] for i in indices],
            add_generation_prompt=self.add_generation_prompt,
            template_args=self.template_args,
        )


class DescribeWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="describe"):
    """A request for the description of the loaded model and the statistics of its process; always one item."""

    def __len__(self) -> int:
        return 1

    def select(self, indices: Sequence[int]) -> DescribeWork:
        """Return the same work: it has one item."""
        del indices
        return self


Work = LogLikelihoodWork | RollingWork | GenerateWork | ChatWork | DescribeWork | CompletionWork


class StepLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's limits on the rows of a step.

    ``max_rows`` is an upper bound, ``rows`` a fixed number; None leaves the choice to the engine.
    """

    max_rows: PositiveCount | None = None
    rows: PositiveCount | None = None


# --- Answers and statistics. --------------------------------------------------------------------------------------


class ChatTemplates(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chat templates of a tokenizer, so that the client can render conversations itself.

    ``templates`` maps a name, or "default", to jinja2 text. ``has_method`` is set if the tokenizer has its own template
    method instead.
    """

    templates: dict[str, str] = {}
    special_tokens: dict[str, str] = {}
    has_method: bool = False


class RunStatistics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Statistics of everything that a model process has computed since it started.

    ``shapes`` lists each ``(rows, length)`` that was sent to the model; ``shape_bound`` is the maximum number of shapes.
    ``tokens_requested`` counts each request's own input tokens, ``tokens_distinct`` the minimum that a causal model must
    compute for the scores of each batch, ``tokens_computed`` all positions of all steps, padding included, and
    ``tokens_padding`` the padding among them. ``states_evicted`` counts shared prefixes evicted from the prefix cache.
    ``tokens_generated`` counts the tokens that are part of answers, ``tokens_thrown_away`` the tokens that were decoded
    after the end of an answer.

    The time in which the process had requests, from the arrival of one until its last answer, is the sum of three:
    ``step_seconds``, in which a step was submitted and its result not yet fetched; ``compile_seconds`` of tracing and
    compilation; and ``idle_seconds``, in which the device waited for the host, for example for the first texts to be
    encoded. Time without requests is in none of them. ``tokenizer_seconds`` is the time in which the tokenizer was called,
    while the device waited or computed.
    """

    requests: Count = 0
    steps: Count = 0
    tokens_requested: Count = 0
    tokens_computed: Count = 0
    tokens_padding: Count = 0
    shapes: list[tuple[PositiveCount, PositiveCount]] = []
    shape_bound: Count = 0
    step_seconds: Annotated[float, Meta(ge=0)] = 0.0
    tokens_distinct: Count = 0
    compile_seconds: Annotated[float, Meta(ge=0)] = 0.0
    idle_seconds: Annotated[float, Meta(ge=0)] = 0.0
    states_evicted: Count = 0
    tokens_generated: Count = 0
    tokens_thrown_away: Count = 0
    tokenizer_seconds: Annotated[float, Meta(ge=0)] = 0.0


class ModelDescription(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loaded model, as it is recorded in results.

    ``identity`` is a SHA-256 over the tag, the arguments, the user module that loaded the model and, if there is one, the
    fingerprint of the checkpoint: two models with different identities never share answers. ``provides`` names the
    functions of `birdie_zmq.Model` that load_model returned, or ``callable`` for a bare function.
    """

    model: ModelSpec
    identity: Name
    api: Name
    api_sha256: Name
    num_parameters: Count | None
    dtype: Name | None
    vocab_size: PositiveCount | None
    max_length: PositiveCount
    bos_token_id: int | None
    eos_token_id: int | None
    engine: Name
    devices: list[str]
    versions: dict[str, str]
    chat: ChatTemplates
    report: RunStatistics
    process_id: Count
    start_count: Count
    provides: list[Name] = []


Answer = tuple[float, bool] | float | str | ModelDescription | Completion
"""The answer to one item.

For a continuation: its log-likelihood in nats, and whether greedy decoding gives it. For a whole text: its log-likelihood.
For a prompt or a conversation: the generated or rendered text. For a completion: a `Completion`.
"""


class ComputeCounters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counters of a `RunStatistics` that are reported while work is in progress.

    ``tokens`` counts computed tokens, padding included; ``requested`` and ``distinct`` count the tokens of started
    requests; ``executables`` is the number of shapes that were called. ``seconds`` of computation, ``compile_seconds`` and
    ``idle_seconds`` are three parts of the time, as in `RunStatistics`.
    """

    tokens: Count = 0
    padding: Count = 0
    generated: Count = 0
    executables: Count = 0
    seconds: Duration = 0.0
    compile_seconds: Duration = 0.0
    idle_seconds: Duration = 0.0
    requested: Count = 0
    distinct: Count = 0

    def __add__(self, other: ComputeCounters) -> ComputeCounters:
        return ComputeCounters(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def since(self, earlier: ComputeCounters) -> ComputeCounters:
        """Return the increase since `earlier`; 0 where the earlier count was higher, as after a process was replaced."""
        return ComputeCounters(
            **{name: max(0, getattr(self, name) - getattr(earlier, name)) for name in self.__struct_fields__}
        )

    def at_most(self, maximum: int) -> ComputeCounters:
        """Return the same counters, each limited to a maximum."""
        return ComputeCounters(**{name: min(maximum, getattr(self, name)) for name in self.__struct_fields__})
