"""Carries out a plan with texts in place of numbers, and holds every step to what it says.

What a model would know at a place is the sequence of tokens that it could see there. If that is the beginning of the
request's own row, whole and in order, then any causal model gives the request the score that it has by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st

from birdie_zmq.engine.backend import Backend, ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import PAD, Dense, Extend, Fork, ScoredSequence, Step, Tokens, Tree
from birdie_zmq.engine.scoring import possible_shapes
from birdie_zmq.types import StepLimits

MAX_LENGTH = 128

Text = tuple[int, ...]


def tokens_of(text: Iterable[int]) -> Tokens:
    return np.array(list(text), dtype=np.int32)


def rounded(room: int) -> int:
    """The slots that states are given here; as in the real backend there are few different numbers of them."""
    return 1 << (room - 1).bit_length()


@dataclass
class Replayed:
    """What came out of a plan.

    Attributes:
        computed: Positions of all steps, padding included.
        used: Those that are not padding.
        states: The slots of each state that is there afterwards, by the bytes of its tokens.
        read: The name, and what was read behind it, of each step that read a beginning.
    """

    computed: int = 0
    used: int = 0
    states: dict[bytes, int] = field(default_factory=dict)
    read: list[tuple[bytes, Text]] = field(default_factory=list)


@dataclass
class _Register:
    """What each row has read, and the slots of a row."""

    texts: list[Text]
    room: int


class Replay:
    """Carries out one plan.

    Args:
        items: The requests.
        steps: Their plan.
        known: The slots of each state that is there, by the bytes of its tokens.
        shapes: The shapes that steps may have.
    """

    def __init__(
        self,
        items: Sequence[ScoredSequence],
        steps: Sequence[Step],
        known: Mapping[bytes, int],
        shapes: Collection[Any],
    ) -> None:
        self._items = items
        self._left = [dict(zip(item.positions, item.targets.tolist(), strict=True)) for item in items]
        self._register: _Register | None = None
        self.result = Replayed(states=dict(known))
        rooms = [step.how.room for step in steps if isinstance(step.how, Extend | Fork)]
        self._room = rounded(max(rooms, default=1))
        for step in steps:
            assert step.shape in shapes, f"{step.shape} is not foreseen"
            self._carry_out(step)
        assert not any(self._left), "some targets are not scored"

    def _carry_out(self, step: Step) -> None:
        assert step.tokens.dtype == np.int32
        self.result.computed += step.tokens.size
        self.result.used += step.used_tokens
        match step.how:
            case Dense():
                texts = [tuple(row) for row in step.tokens.tolist()]
                self._score(step, lambda row, position: texts[row][: position + 1])
                assert step.used_tokens == sum(self._used_lengths(step))
            case Tree() as how:
                self._branch(step, how)
            case Extend() as how:
                self._read(step, how)
            case Fork() as how:
                assert self._register is not None
                parents = [self._register.texts[parent] for parent in how.parents]
                assert self._register.room >= how.room
                self._continue(step, parents, how.lengths, how.room)

    def _score(self, step: Step, seen: Any) -> None:
        """Take each target off its request's list, once the model is seen to know just what stands before it."""
        for row, position, target, owner in zip(step.rows, step.positions, step.targets, step.owners, strict=True):
            text = seen(int(row), int(position))
            assert text == tuple(self._items[owner].tokens[: len(text)].tolist())
            assert self._left[owner].pop(len(text) - 1) == target

    def _used_lengths(self, step: Step) -> list[int]:
        """How many tokens of each row there are: the last of every text is scored, and behind it is padding."""
        lengths = [0] * step.shape[0]
        for row, position in zip(step.rows.tolist(), step.positions.tolist(), strict=True):
            lengths[row] = max(lengths[row], position + 1)
        for row, length in enumerate(lengths):
            assert (step.tokens[row, length:] == PAD).all()
        return lengths

    def _branch(self, step: Step, how: Tree) -> None:
        assert how.state == b"" or how.state in self.result.states
        before = tuple(np.frombuffer(how.state, np.int32).tolist())
        texts: list[list[Text]] = []
        lengths = self._used_lengths(step)
        assert step.used_tokens == sum(lengths)
        here = np.arange(step.shape[1])
        for row, length in enumerate(lengths):
            seen = (here[None] <= here[:, None]) & (here[:, None] < how.ends[row][None])
            of_row = []
            for position in range(step.shape[1]):
                visible = np.flatnonzero(seen[position])
                if position >= length:
                    assert visible.tolist() == [position], "padding sees itself only"
                    continue
                assert how.depths[row, visible].tolist() == list(range(len(visible)))
                of_row.append((*before, *step.tokens[row, visible].tolist()))
            assert len(set(of_row)) == len(of_row), "a row computes nothing twice"
            texts.append(of_row)
        self._score(step, lambda row, position: texts[row][position])

    def _read(self, step: Step, how: Extend) -> None:
        rows = step.shape[0]
        if how.before is None:
            assert self._register is not None
            register = self._register
            assert len(register.texts) == rows
        else:
            assert how.before == b"" or how.before in self.result.states
            before = tuple(np.frombuffer(how.before, np.int32).tolist())
            room = self.result.states[how.before] if how.before else self._room
            register = _Register([before] * rows, room)
        assert register.room >= how.room, "the state has not the slots that it is asked for"
        read = self._continue(step, register.texts, how.lengths, how.room)
        self._register = _Register(read, register.room)
        if how.after is not None:
            (text,) = read
            assert how.after == tokens_of(text).tobytes()
            self.result.states[how.after] = register.room
            self.result.read.append((how.before or b"", text))

    def _continue(self, step: Step, before: Sequence[Text], lengths: Tokens, room: int) -> list[Text]:
        assert step.used_tokens == lengths.sum()
        assert len(before) == len(lengths) == step.shape[0]
        for row, length in enumerate(lengths):
            assert (step.tokens[row, length:] == PAD).all()
            # All of the step's tokens are written behind the row, padding too.
            assert length == 0 or len(before[row]) + step.shape[1] <= room
        assert (step.positions < lengths[step.rows]).all(), "padding is scored"
        tokens = step.tokens.tolist()
        self._score(step, lambda row, position: (*before[row], *tokens[row][: position + 1]))
        return [(*before[row], *tokens[row][:length]) for row, length in enumerate(lengths)]


def replay(
    items: Sequence[ScoredSequence],
    steps: Sequence[Step],
    ability: ExecutionMode,
    buckets: Buckets,
    known: Mapping[bytes, int],
) -> Replayed:
    """Carry out a plan.

    Raises:
        AssertionError: It is not a plan for these requests.
    """
    return Replay(items, steps, known, possible_shapes(ability, buckets)).result


@dataclass
class Knows:
    """As much of a backend as planning asks: what it can do, and which states it has."""

    ability: ExecutionMode
    states: Mapping[bytes, int] = field(default_factory=dict)

    def known(self, room: int) -> Collection[bytes]:
        return [name for name, slots in self.states.items() if slots >= room]

    @property
    def as_backend(self) -> Backend:
        return cast(Backend, self)


# --- Requests and shapes, for hypothesis -----------------------------------------------------------------------------

# Few tokens, so that beginnings are shared; runs, so that long texts need few choices. Bytes order some differently.
_ends = st.lists(
    st.tuples(st.sampled_from([1, 2, 256]), st.integers(1, 25) | st.integers(60, 110)), min_size=1, max_size=3
)


@st.composite
def texts(draw: st.DrawFn) -> list[Text]:
    """Texts of 2 tokens and more, most of which begin as others do."""
    found: list[Text] = [()]
    for runs in draw(st.lists(_ends, min_size=1, max_size=10)):
        parent = draw(st.sampled_from(found))
        begin = draw(st.integers(0, len(parent)))
        end = tuple(token for token, count in runs for _ in range(count))
        found.append((parent[:begin] + end)[:MAX_LENGTH])
    return [text if len(text) > 1 else (*text, 1, 1) for text in found[1:]]


@st.composite
def requests(draw: st.DrawFn, of: Sequence[Text]) -> list[ScoredSequence]:
    """Requests that score any number of last tokens of some beginnings of texts."""
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
)
step_limits = st.builds(StepLimits, rows=st.none() | st.integers(1, 5)) | st.builds(
    StepLimits, max_rows=st.integers(1, 8)
)
any_buckets = st.builds(lambda budget, limits: Buckets(MAX_LENGTH, 0, budget, limits), budgets, step_limits)


@st.composite
def states_of(draw: st.DrawFn, of: Sequence[Text]) -> dict[bytes, int]:
    """States of any beginnings of texts, with the slots for it and perhaps for more."""
    states = {}
    for text in draw(st.lists(st.sampled_from(of), max_size=4)):
        prefix = text[: draw(st.integers(1, len(text)))]
        states[tokens_of(prefix).tobytes()] = rounded(len(prefix) + draw(st.sampled_from([0, 16, 100])))
    return states
