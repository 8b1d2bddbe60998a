"""Steps, each one call of the model, and the sequences that they score.

Pure NumPy. A *row* is the input of a causal model: all tokens of a sequence but the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PAD = 0
"""The token to pad with: any that the model surely knows."""


@dataclass(frozen=True)
class ScoredSequence:
    """Tokens to be scored: the last ``count`` of ``tokens`` int32[n], each predicted from all before it.

    ``cut`` is how many tokens were dropped on the left to fit the model.
    """

    tokens: Tokens
    count: int
    cut: int = 0

    @property
    def row(self) -> Tokens:
        """What the model reads, int32[n-1]."""
        return self.tokens[:-1]

    @property
    def positions(self) -> range:
        """Where in the row the scored tokens are predicted."""
        return range(len(self.tokens) - 1 - self.count, len(self.tokens) - 1)

    @property
    def targets(self) -> Tokens:
        """The scored tokens, int32[count]."""
        return self.tokens[len(self.tokens) - self.count :]


@dataclass(frozen=True)
class Dense:
    """Each row of the step is a text by itself."""


@dataclass(frozen=True)
class Tree:
    """Rows hold trees of texts, all behind one state; `birdie_zmq.Model.branch` says what the arrays are.

    ``state`` is the beginning that all texts share, by the bytes of its tokens; empty for none.
    """

    depths: Tokens
    ends: Tokens
    state: bytes


@dataclass(frozen=True)
class Extend:
    """Each row of a state reads on, ``lengths`` int32[rows] of its tokens.

    ``before`` is the beginning, by the bytes of its tokens, whose state all rows start from (empty: a new one); None
    goes on from where the last `Extend` came to. ``after`` is the name of the state that is kept for later, or None.
    ``room`` is how many slots its rows need.
    """

    lengths: Tokens
    before: bytes | None
    after: bytes | None
    room: int


@dataclass(frozen=True)
class Fork:
    """Row i continues row ``parents[i]`` of where the last `Extend` came to, by ``lengths[i]`` tokens, and is dropped."""

    parents: Tokens
    lengths: Tokens
    room: int


@dataclass(frozen=True)
class Pairs:
    """Each row is a context and its continuation; `birdie_zmq.Model.score` says what the arrays int32[rows, length] are.

    A step of these has one place for each request, whose row it names; positions and targets say nothing.
    """

    label_ids: Tokens
    loss_mask: Tokens


StepKind = Dense | Tree | Extend | Fork | Pairs


@dataclass
class ScorePositions:
    """What is scored in a step: at ``rows[i], positions[i]`` the token ``targets[i]``, for request ``owners[i]``."""

    rows: list[Tokens] = field(default_factory=list)
    positions: list[Tokens] = field(default_factory=list)
    targets: list[Tokens] = field(default_factory=list)
    owners: list[Tokens] = field(default_factory=list)

    def add(self, row: int, positions: npt.ArrayLike, targets: Tokens, owner: int) -> None:
        """Score some targets of one request in one row."""
        count = len(targets)
        self.rows.append(np.full(count, row, np.int32))
        self.positions.append(np.asarray(positions, np.int32))
        self.targets.append(targets)
        self.owners.append(np.full(count, owner, np.int32))


@dataclass(frozen=True)
class Step:
    """One call of the model.

    Attributes:
        tokens: int32[rows, length], rows padded on the right.
        used_tokens: How many positions are not padding.
        how: How the model reads them.
        rows, positions, targets, owners: int32[q] each; what is scored, as in `ScorePositions`.
    """

    tokens: Tokens
    used_tokens: int
    how: StepKind
    rows: Tokens
    positions: Tokens
    targets: Tokens
    owners: Tokens

    @classmethod
    def of(cls, tokens: Tokens, used_tokens: int, how: StepKind, places: ScorePositions) -> Step:
        """Put the places together."""
        columns = (places.rows, places.positions, places.targets, places.owners)
        joined = [np.concatenate(column) if column else np.zeros(0, np.int32) for column in columns]
        return cls(tokens, used_tokens, how, *joined)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and length."""
        rows, length = self.tokens.shape
        return rows, length
