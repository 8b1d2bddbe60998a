"""A symbolic replay of a plan, with token sequences instead of numbers, which checks every step.

At each scored position, the replay computes the sequence of tokens that a model could attend to. If this is the
complete prefix of the request's own row, in order, any causal model returns the score that the request has alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import PAD, Dense, Extend, Fork, ScoredSequence, Step, Tokens, Tree
from birdie_zmq.types import StepLimits

MAX_LENGTH = 128

Text = tuple[int, ...]


def tokens_of(text: Iterable[int]) -> Tokens:
    return np.array(list(text), dtype=np.int32)


def round_capacity(capacity: int) -> int:
    """Round a capacity up; as in the real backend, states have one of a few capacities."""
    return 1 << (capacity - 1).bit_length()


@dataclass
class ReplayResult:
    """The result of a replay.

    Attributes:
        computed: The positions of all steps, padding included.
        used: The positions that are not padding.
        states: The capacity of each state that is cached afterwards, by the bytes of its tokens.
        prefills: For each step that computed a prefix, the prefix that it started from, as bytes, and the whole prefix.
    """

    computed: int = 0
    used: int = 0
    states: dict[bytes, int] = field(default_factory=dict)
    prefills: list[tuple[bytes, Text]] = field(default_factory=list)


@dataclass
class _State:
    """The text of each row of the state, and the capacity of a row."""

    texts: list[Text]
    capacity: int


class Replay:
    """Replays one plan.

    Args:
        items: The requests.
        steps: Their plan.
        cached: The capacity of each cached state, by the bytes of its tokens.
        shapes: The shapes that steps may have.
    """

    def __init__(
        self,
        items: Sequence[ScoredSequence],
        steps: Sequence[Step],
        cached: Mapping[bytes, int],
        shapes: Collection[Any],
    ) -> None:
        self._items = items
        self._unscored = [dict(zip(item.positions, item.targets.tolist(), strict=True)) for item in items]
        self._state: _State | None = None  # of the last `Extend`
        self._chains: dict[int, _State] = {}
        self.result = ReplayResult(states=dict(cached))
        capacities = [step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)]
        self._capacity = round_capacity(max(capacities, default=1))
        for step in steps:
            assert step.shape in shapes, f"{step.shape} is not a possible shape"
            self._run(step)
        assert not any(self._unscored), "some targets are not scored"

    def _run(self, step: Step) -> None:
        assert step.tokens.dtype == np.int32
        self.result.computed += step.tokens.size
        self.result.used += step.used_tokens
        match step.kind:
            case Dense():
                texts = [tuple(row) for row in step.tokens.tolist()]
                self._score(step, lambda row, position: texts[row][: position + 1])
                assert step.used_tokens == sum(self._used_lengths(step))
            case Tree() as kind:
                self._tree(step, kind)
            case Extend() as kind:
                self._extend(step, kind)
            case Fork() as kind:
                assert self._state is not None
                parents = [self._state.texts[parent] for parent in kind.parents]
                assert self._state.capacity >= kind.capacity
                self._append(step, parents, kind.lengths, kind.capacity)

    def _score(self, step: Step, seen: Any) -> None:
        """Mark each target as scored, after a check that the model sees exactly the tokens before it."""
        for row, position, target, owner in zip(step.rows, step.positions, step.targets, step.owners, strict=True):
            text = seen(int(row), int(position))
            assert text == tuple(self._items[owner].tokens[: len(text)].tolist())
            assert self._unscored[owner].pop(len(text) - 1) == target

    def _used_lengths(self, step: Step) -> list[int]:
        """Return the number of real tokens of each row: the last token of every text is scored, and padding follows it."""
        lengths = [0] * step.shape[0]
        for row, position in zip(step.rows.tolist(), step.positions.tolist(), strict=True):
            lengths[row] = max(lengths[row], position + 1)
        for row, length in enumerate(lengths):
            assert (step.tokens[row, length:] == PAD).all()
        return lengths

    def _tree(self, step: Step, kind: Tree) -> None:
        assert kind.prefix == b"" or kind.prefix in self.result.states
        before = tuple(np.frombuffer(kind.prefix, np.int32).tolist())
        texts: list[list[Text]] = []
        lengths = self._used_lengths(step)
        assert step.used_tokens == sum(lengths)
        here = np.arange(step.shape[1])
        for row, length in enumerate(lengths):
            seen = (here[None] <= here[:, None]) & (here[:, None] < kind.ends[row][None])
            of_row = []
            for position in range(step.shape[1]):
                visible = np.flatnonzero(seen[position])
                if position >= length:
                    assert visible.tolist() == [position], "padding attends to itself only"
                    continue
                assert kind.depths[row, visible].tolist() == list(range(len(visible)))
                of_row.append((*before, *step.tokens[row, visible].tolist()))
            assert len(set(of_row)) == len(of_row), "a row computes nothing twice"
            texts.append(of_row)
        self._score(step, lambda row, position: texts[row][position])

    def _extend(self, step: Step, kind: Extend) -> None:
        rows = step.shape[0]
        if kind.before is None:
            current = self._chains[kind.chain]
            assert len(current.texts) == rows
        else:
            assert kind.before == b"" or kind.before in self.result.states
            before = tuple(np.frombuffer(kind.before, np.int32).tolist())
            capacity = self.result.states[kind.before] if kind.before else self._capacity
            current = _State([before] * rows, capacity)
        assert current.capacity >= kind.capacity, "the state has less capacity than the step needs"
        extended = self._append(step, current.texts, kind.lengths, kind.capacity)
        self._state = self._chains[kind.chain] = _State(extended, current.capacity)
        if kind.after is not None:
            (text,) = extended
            assert kind.after == tokens_of(text).tobytes()
            self.result.states[kind.after] = current.capacity
            self.result.prefills.append((kind.before or b"", text))

    def _append(self, step: Step, before: Sequence[Text], lengths: Tokens, capacity: int) -> list[Text]:
        assert step.used_tokens == lengths.sum()
        assert len(before) == len(lengths) == step.shape[0]
        for row, length in enumerate(lengths):
            assert (step.tokens[row, length:] == PAD).all()
            # All tokens of the step are appended to the row, padding too.
            assert length == 0 or len(before[row]) + step.shape[1] <= capacity
        assert (step.positions < lengths[step.rows]).all(), "padding is scored"
        tokens = step.tokens.tolist()
        self._score(step, lambda row, position: (*before[row], *tokens[row][: position + 1]))
        return [(*before[row], *tokens[row][:length]) for row, length in enumerate(lengths)]


def replay(
    items: Sequence[ScoredSequence],
    steps: Sequence[Step],
    mode: ExecutionMode,
    buckets: Buckets,
    cached: Mapping[bytes, int],
) -> ReplayResult:
    """Replay a plan.

    Raises:
        AssertionError: It is not a plan for these requests.
    """
    return Replay(items, steps, cached, mode.shapes(buckets)).result


# --- Requests and shapes, for hypothesis ------------------------------------------------------------------------------

# Few tokens, so that prefixes are shared; runs, so that long texts need few choices. 256 sorts differently by bytes.
_ends = st.lists(
    st.tuples(st.sampled_from([1, 2, 256]), st.integers(1, 25) | st.integers(60, 110)), min_size=1, max_size=3
)


@st.composite
def texts(draw: st.DrawFn) -> list[Text]:
    """Draw texts of at least 2 tokens; most share a prefix with others."""
    found: list[Text] = [()]
    for runs in draw(st.lists(_ends, min_size=1, max_size=10)):
        parent = draw(st.sampled_from(found))
        begin = draw(st.integers(0, len(parent)))
        end = tuple(token for token, count in runs for _ in range(count))
        found.append((parent[:begin] + end)[:MAX_LENGTH])
    return [text if len(text) > 1 else (*text, 1, 1) for text in found[1:]]


@st.composite
def requests(draw: st.DrawFn, of: Sequence[Text]) -> list[ScoredSequence]:
    """Draw requests that score any number of the last tokens of a prefix of a text."""
    items = []
    for text in draw(st.lists(st.sampled_from(of), min_size=1, max_size=12)):
        tokens = text[: draw(st.one_of(st.just(len(text)), st.integers(2, len(text))))]
        items.append(ScoredSequence(tokens_of(tokens), draw(st.integers(1, len(tokens) - 1))))
    return items


budgets = st.builds(
    StepBudget,
    tokens=st.sampled_from([1, 16, 40, 64, 256, 1024]),
    call_tokens=st.sampled_from([0, 1, 8, 32, 500]),
    rows=st.sampled_from([1, 4, 64]),
    row_unit=st.sampled_from([1, 1, 2, 3]),
    steps_ahead=st.sampled_from([1, 2]),
)
step_limits = st.builds(StepLimits, rows=st.none() | st.integers(1, 5)) | st.builds(
    StepLimits, max_rows=st.integers(1, 8)
)
any_buckets = st.builds(lambda budget, limits: Buckets(MAX_LENGTH, 0, budget, limits), budgets, step_limits)


@st.composite
def states_of(draw: st.DrawFn, of: Sequence[Text]) -> dict[bytes, int]:
    """Draw states of any prefixes of texts, with a capacity for them and perhaps for more."""
    states = {}
    for text in draw(st.lists(st.sampled_from(of), max_size=4)):
        prefix = text[: draw(st.integers(1, len(text)))]
        states[tokens_of(prefix).tobytes()] = round_capacity(len(prefix) + draw(st.sampled_from([0, 16, 100])))
    return states
