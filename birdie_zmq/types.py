"""The data that every layer shares: model specs, requests, answers, sampling parameters, run statistics.

The protocol knows how to encode these records; the engine computes with them and knows nothing of the protocol. A record
of requests or answers holds many items, so that numbers travel as arrays, and can be cut down to some of its items.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct, field

from birdie_zmq.errors import BirdieError

Count = Annotated[int, Meta(ge=0, lt=2**53)]
PositiveCount = Annotated[int, Meta(gt=0, lt=2**53)]
Seconds = Annotated[float, Meta(gt=0, lt=1e9)]
Duration = Annotated[float, Meta(ge=0, lt=1e9)]
Name = Annotated[str, Meta(max_length=4096)]
Key = Annotated[int, Meta(ge=0, lt=2**62)]
Temperature = Annotated[float, Meta(gt=0, lt=1e9)]
Portion = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Level = Literal["info", "warning"]
Indices = npt.NDArray[np.int32]
Lengths = Annotated[tuple[Count, ...], Meta(max_length=65_536)]

_MOST_ERROR_CHARACTERS = 100_000


def _sendable(text: str) -> str:
    """A text of somebody else's making, which may be of any length and hold what UTF-8 cannot; the end says most."""
    if len(text) > _MOST_ERROR_CHARACTERS:
        half = _MOST_ERROR_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


class ErrorReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error as it travels; `birdie_zmq.errors` says what each code means."""

    code: Name
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BirdieError) -> ErrorReport:
        """Describe an error for another process, with the traceback of what caused it, which is the user's code."""
        trace = error.remote_traceback
        if trace is None and error.__cause__ is not None:
            trace = "".join(traceback.format_exception(error.__cause__))
        return cls(
            code=error.code, message=_sendable(error.message), traceback=None if trace is None else _sendable(trace)
        )

    def to_error(self) -> BirdieError:
        """The same error, to be raised in this process."""
        return BirdieError.from_code(self.code, self.message, self.traceback)


class ModelSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model is meant: the tag, and the canonical JSON object of the keywords that reach ``api.py``."""

    tag: Name
    arguments: str = "{}"

    def __str__(self) -> str:
        return self.tag if self.arguments == "{}" else f"{self.tag} {self.arguments}"


# --- Work: what is asked. Each kind can be cut down to some of its items, for an answer that was lost half-way. ------


class LogLikelihoodWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="loglikelihood"):
    """Log-likelihood of each continuation after its context; items are ``(context, continuation)``."""

    pairs: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, indices: Sequence[int]) -> LogLikelihoodWork:
        """The same work for some of its items."""
        return LogLikelihoodWork(pairs=[self.pairs[i] for i in indices])


class RollingWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rolling"):
    """Log-likelihood of each whole text, by disjoint windows of the model's length."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> RollingWork:
        """The same work for some of its items."""
        return RollingWork(texts=[self.texts[i] for i in indices])


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn, in transformers' words: logits are divided by ``temperature``, then tokens are left out.

    Of the rest of the tokens each limit leaves in: ``top_k``, the k most likely ones (0: all); ``top_p``, the fewest
    of the most likely ones that together are as likely as this; ``min_p``, those at least this times as likely as the
    most likely one.
    """

    temperature: Temperature = 1.0
    top_k: Count = 0
    top_p: Portion = 1.0
    min_p: Share = 0.0


class GenerationParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to continue a prompt.

    ``until`` holds the stop strings; the text is cut before the first of them. ``think_end_token``, as text or as a
    token, ends the thoughts of a model: what stands before it is not part of the answer, and no stop string ends it.
    Without ``sampling`` the most likely token is taken.
    """

    until: tuple[str, ...] = ()
    max_gen_toks: PositiveCount = 256
    think_end_token: str | Count | None = None
    sampling: SamplingParams | None = None


class GenerateWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="generate"):
    """A continuation of each prompt.

    ``keys`` has, where tokens are drawn, a random key for each prompt: all that chance depends on, whatever is computed
    beside it.
    """

    prompts: list[str]
    settings: GenerationParams
    keys: list[Key] = []

    def __post_init__(self) -> None:
        wanted = len(self.prompts) if self.settings.sampling else 0
        if len(self.keys) != wanted:
            raise ValueError(f"{len(self.prompts)} prompts need {wanted} keys, not {len(self.keys)}")

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> GenerateWork:
        """The same work for some of its items."""
        return GenerateWork(
            prompts=[self.prompts[i] for i in indices],
            settings=self.settings,
            keys=[self.keys[i] for i in indices] if self.keys else [],
        )


class ChatWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="chat"):
    """Conversations to be rendered by a tokenizer that has a template method of its own and no template text.

    ``template_args`` is a JSON object of further keywords for that method.
    """

    conversations: list[list[dict[str, str]]]
    add_generation_prompt: bool
    template_args: str = "{}"

    def __len__(self) -> int:
        return len(self.conversations)

    def select(self, indices: Sequence[int]) -> ChatWork:
        """The same work for some of its items."""
        return ChatWork(
            conversations=[self.conversations[i] for i in indices],
            add_generation_prompt=self.add_generation_prompt,
            template_args=self.template_args,
        )


class DescribeWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="describe"):
    """What the loaded model is, and what its process has done so far; always one item."""

    def __len__(self) -> int:
        return 1

    def select(self, indices: Sequence[int]) -> DescribeWork:
        """The same work: it has one item."""
        del indices
        return self


Work = LogLikelihoodWork | RollingWork | GenerateWork | ChatWork | DescribeWork


class StepLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user said about the rows of a step: the most, or a number that is forced; None leaves it to the engine."""

    max_rows: PositiveCount | None = None
    rows: PositiveCount | None = None


# --- Answers: one record for many items, so that numbers travel as arrays. -------------------------------------------


class Scores(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scores"):
    """``loglikelihoods`` float64[n] in nats, and whether each continuation is what greedy decoding gives, bool[n]."""

    loglikelihoods: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.greedy) != len(self.loglikelihoods):
            raise ValueError(f"{len(self.loglikelihoods)} scores come with {len(self.greedy)} greedy flags")

    def __len__(self) -> int:
        return len(self.loglikelihoods)

    def select(self, positions: Sequence[int]) -> Scores:
        """Some of the answers."""
        return Scores(loglikelihoods=self.loglikelihoods[positions], greedy=self.greedy[positions])


class RollingScores(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rolling-scores"):
    """``loglikelihoods`` float64[n] in nats, each of a whole text."""

    loglikelihoods: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.loglikelihoods)

    def select(self, positions: Sequence[int]) -> RollingScores:
        """Some of the answers."""
        return RollingScores(loglikelihoods=self.loglikelihoods[positions])


class Texts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="texts"):
    """Generated or rendered texts."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, positions: Sequence[int]) -> Texts:
        """Some of the answers."""
        return Texts(texts=[self.texts[position] for position in positions])


class ChatTemplates(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the client needs to render conversations itself; ``templates`` maps a name, or "default", to jinja2 text."""

    templates: dict[str, str] = {}
    special_tokens: dict[str, str] = {}
    has_method: bool = False


class RunStatistics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model process has computed since it started.

    ``shapes`` lists each ``(rows, length)`` that was sent to the model; ``shape_bound`` is the most there can be.
    ``tokens_requested`` counts each request's own input tokens, ``tokens_distinct`` the least that a causal model must
    compute for the scores of each batch, ``tokens_computed`` all positions of all steps, padding included,
    ``tokens_padding`` those of them that were padding. ``step_seconds`` leave out ``compile_seconds``; in
    ``idle_seconds`` the device waited for the host. ``states_evicted`` counts beginnings whose states had to go.
    ``tokens_generated`` are those that answers were made of; ``tokens_thrown_away`` were decoded behind an answer's end.
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


class ModelDescription(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="description"):
    """The loaded model, as results record it.

    ``identity`` is a SHA-256 over the tag, its arguments, the page that loaded it and, where there is one, the
    fingerprint of its checkpoint: two models with different identities never share answers. ``gives`` names the
    functions of `birdie_zmq.Model` that load_model gave, or ``callable`` for a bare one.
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
    start_count: Count = field(name="started")
    provides: list[Name] = field(default_factory=list, name="gives")

    def __len__(self) -> int:
        return 1

    def select(self, positions: Sequence[int]) -> ModelDescription:
        """The same: it is one answer."""
        del positions
        return self


Answers = Scores | RollingScores | Texts | ModelDescription


class ComputeCounters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The few counts of a `RunStatistics` that are told while the work goes on.

    ``tokens`` are those computed, padding included, ``requested`` and ``distinct`` those of the requests that were
    begun with, ``programs`` how many shapes were called; ``seconds`` of work leave out ``compile_seconds``, which
    here are all that it takes to have a program, tracing included.

    ``planned`` is what the reading costs that was planned, and ``done`` all that is over, in positions that are read.
    """

    tokens: Count = 0
    padding: Count = 0
    generated: Count = 0
    executables: Count = field(default=0, name="programs")
    seconds: Duration = 0.0
    compile_seconds: Duration = 0.0
    requested: Count = 0
    distinct: Count = 0
    planned: Count = 0
    done: Count = 0

    def __add__(self, other: ComputeCounters) -> ComputeCounters:
        return ComputeCounters(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def since(self, before: ComputeCounters) -> ComputeCounters:
        """What has been added to `before`; 0 where it was more, as a process that was replaced leaves it."""
        return ComputeCounters(
            **{name: max(0, getattr(self, name) - getattr(before, name)) for name in self.__struct_fields__}
        )

    def at_most(self, most: int) -> ComputeCounters:
        """The same, with no count above a number."""
        return ComputeCounters(**{name: min(most, getattr(self, name)) for name in self.__struct_fields__})


class ProgressDelta(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a lease has come.

    ``computed`` is what the model process has computed since it said so last, ``ahead`` the rest of what is planned for
    this lease, for which ``programs`` have to be compiled yet. Of texts that are continued, ``going`` says how many tokens
    each of those that go on has so far, and ``ended`` how many those have that ended since it was said last; in a round
    ``slots`` of them get another token together, at ``round_cost`` in positions, of which each slot takes ``row_cost``.
    """

    computed: ComputeCounters = ComputeCounters()
    remaining: Count = field(default=0, name="ahead")
    active_lengths: Lengths = field(default=(), name="going")
    finished_lengths: Lengths = field(default=(), name="ended")
    decode_rows: PositiveCount = field(default=1, name="slots")
    decode_step_cost: Count = field(default=0, name="round_cost")
    decode_row_cost: Count = field(default=0, name="row_cost")
    pending_compiles: Count = field(default=0, name="programs")
