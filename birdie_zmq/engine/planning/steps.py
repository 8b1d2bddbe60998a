"""Steps, each of which is one model call, and the sequences that they score. Pure NumPy.

A *row* is the input of a causal model: all tokens of a sequence but the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PAD = 0
"""The padding token: an id that every vocabulary has."""


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence of tokens int32[n], the last ``count`` of which are scored, each predicted from all tokens before it.

    ``truncated`` is the number of tokens dropped on the left to fit the model.
    """

    tokens: Tokens
    count: int
    truncated: int = 0

    @property
    def row(self) -> Tokens:
        """The model input, int32[n-1]."""
        return self.tokens[:-1]

    @property
    def positions(self) -> range:
        """The positions of the row at which the scored tokens are predicted."""
        return range(len(self.tokens) - 1 - self.count, len(self.tokens) - 1)

    @property
    def targets(self) -> Tokens:
        """The scored tokens, int32[count]."""
        return self.tokens[len(self.tokens) - self.count :]


@dataclass(frozen=True)
class Dense:
    """A step with one sequence in each row."""


@dataclass(frozen=True)
class Tree:
    """A step with trees of sequences in each row, all after one state; `birdie_zmq.Model.branch` documents the arrays.

    ``prefix`` is the prefix that all sequences share, as the bytes of its tokens; empty for none.
    """

    depths: Tokens
    ends: Tokens
    prefix: bytes


@dataclass(frozen=True)
class Extend:
    """A step that extends each row of a state by ``lengths`` int32[rows] of its tokens.

    All rows start from the cached state of the prefix ``before``, given as the bytes of its tokens (empty: a new
    state); None continues the state that the last `Extend` of the same ``chain`` left. ``after`` is the prefix under
    which the new state is cached, or None. ``capacity`` is the number of tokens that each row of the state must hold.
    """

    lengths: Tokens
    before: bytes | None
    after: bytes | None
    capacity: int
    chain: int = 0


@dataclass(frozen=True)
class Fork:
    """A step that extends copies of rows of the last `Extend`'s state, and drops them afterwards.

    Row i extends a copy of row ``parents[i]`` by ``lengths[i]`` tokens.
    """

    parents: Tokens
    lengths: Tokens
    capacity: int


@dataclass(frozen=True)
class Pairs:
    """A step of contexts and their continuations; `birdie_zmq.Model.score` documents the arrays int32[rows, length].

    It has one entry for each request in `Step.rows` and `Step.owners`; positions and targets are unused.
    """

    label_ids: Tokens
    loss_mask: Tokens


StepKind = Dense | Tree | Extend | Fork | Pairs


@dataclass
class ScorePositions:
    """Targets of a step, in groups: the targets of group i are predicted in row ``rows[i]`` for request ``owners[i]``.

    In that row, the token ``targets[i][j]`` is scored at ``positions[i][j]``.
    """

    rows: list[int] = field(default_factory=list)
    positions: list[Tokens] = field(default_factory=list)
    targets: list[Tokens] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def add(self, row: int, positions: range | Tokens, targets: Tokens, owner: int) -> None:
        """Add targets of one request in one row."""
        if isinstance(positions, range):
            positions = np.arange(positions.start, positions.stop, dtype=np.int32)
        self.rows.append(row)
        self.positions.append(positions)
        self.targets.append(targets)
        self.owners.append(owner)


@dataclass(frozen=True)
class Step:
    """One model call.

    Attributes:
        tokens: int32[rows, length], rows padded on the right.
        used_tokens: The number of positions that are not padding.
        kind: Which function of the model computes the step, and from which state it starts.
        rows, positions, targets, owners: int32[q] each; the targets, as in `ScorePositions`.
    """

    tokens: Tokens
    used_tokens: int
    kind: StepKind
    rows: Tokens
    positions: Tokens
    targets: Tokens
    owners: Tokens

    @classmethod
    def of(cls, tokens: Tokens, used_tokens: int, kind: StepKind, scored: ScorePositions) -> Step:
        """Make a step from the groups of its score positions."""
        if not scored.rows:
            none = np.zeros(0, np.int32)
            return cls(tokens, used_tokens, kind, none, none, none, none)
        counts = [len(targets) for targets in scored.targets]
        rows, owners = (np.repeat(np.array(column, np.int32), counts) for column in (scored.rows, scored.owners))
        positions, targets = np.concatenate(scored.positions), np.concatenate(scored.targets)
        return cls(tokens, used_tokens, kind, rows, positions, targets, owners)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and their length."""
        rows, length = self.tokens.shape
        return rows, length
