"""Messages between the ranks of a process group: each backend call of rank 0, encoded as bytes and decoded. Pure.

The messages are msgpack, and contain only numbers, names and arrays of int32 or bool. Decoding validates every type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from birdie_zmq.engine.backend import SamplingMetadata, TokenChoice
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, Step, StepKind, Tree
from birdie_zmq.errors import MalformedMessage
from birdie_zmq.types import ErrorReport, ModelSpec

NonNegativeInt = Annotated[int, Meta(ge=0, lt=2**62)]


class Array(Struct, frozen=True, forbid_unknown_fields=True):
    """An array of int32 or bool in C order."""

    dtype: Literal["<i4", "|b1"]
    shape: Annotated[list[NonNegativeInt], Meta(max_length=2)]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Array:
        """Encode an array of int32 or bool."""
        return cls(msgspec.convert(array.dtype.str, Literal["<i4", "|b1"]), list(array.shape), array.tobytes())

    def array(self) -> npt.NDArray[Any]:
        """Return the array.

        Raises:
            MalformedMessage: The number of bytes does not match the shape.
        """
        count = 1
        for size in self.shape:
            count *= size
        dtype = np.dtype(self.dtype)
        if count * dtype.itemsize != len(self.data):
            raise MalformedMessage(
                f"an array of {self.dtype}{self.shape} has {len(self.data)} bytes instead of {count * dtype.itemsize}"
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape)


class KindPayload(Struct, frozen=True, forbid_unknown_fields=True):
    """The kind of a step; `birdie_zmq.engine.planning.steps` documents the fields."""

    kind: Literal["dense", "tree", "extend", "fork", "pairs"]
    arrays: Annotated[list[Array], Meta(max_length=2)] = []
    before: bytes | None = None
    after: bytes | None = None
    capacity: NonNegativeInt = 0
    chain: NonNegativeInt = 0

    @classmethod
    def of(cls, kind: StepKind) -> KindPayload:
        """Encode the kind of a step."""
        match kind:
            case Dense():
                return cls("dense")
            case Tree(depths, ends, prefix):
                return cls("tree", [Array.of(depths), Array.of(ends)], before=prefix)
            case Extend(lengths, before, after, capacity, chain):
                return cls("extend", [Array.of(lengths)], before, after, capacity, chain)
            case Fork(parents, lengths, capacity):
                return cls("fork", [Array.of(parents), Array.of(lengths)], capacity=capacity)
            case Pairs(label_ids, loss_mask):
                return cls("pairs", [Array.of(label_ids), Array.of(loss_mask)])

    def step_kind(self) -> StepKind:
        """Return the kind of the step.

        Raises:
            MalformedMessage: The number of arrays does not match the kind.
        """
        match self.kind, [array.array() for array in self.arrays]:
            case "dense", []:
                return Dense()
            case "tree", [depths, ends] if self.before is not None:
                return Tree(depths, ends, self.before)
            case "extend", [lengths]:
                return Extend(lengths, self.before, self.after, self.capacity, self.chain)
            case "fork", [parents, lengths]:
                return Fork(parents, lengths, self.capacity)
            case "pairs", [label_ids, loss_mask]:
                return Pairs(label_ids, loss_mask)
        raise MalformedMessage(f"a step of kind {self.kind} has {len(self.arrays)} arrays")


class StepPayload(Struct, frozen=True, forbid_unknown_fields=True):
    """A step without its owners: only rank 0 knows the requests."""

    tokens: Array
    kind: KindPayload
    rows: Array
    positions: Array
    targets: Array

    @classmethod
    def of(cls, step: Step) -> StepPayload:
        """Encode a step."""
        arrays = map(Array.of, (step.rows, step.positions, step.targets))
        return cls(Array.of(step.tokens), KindPayload.of(step.kind), *arrays)

    def step(self) -> Step:
        """Return the step, with owner 0 for all targets."""
        rows = self.rows.array()
        owners = np.zeros_like(rows)
        return Step(
            self.tokens.array(), 0, self.kind.step_kind(), rows, self.positions.array(), self.targets.array(), owners
        )


class StartPlan(Struct, frozen=True, forbid_unknown_fields=True, tag="start-plan"):
    """`Backend.start_plan`, with only the initial state and the needed capacity of each step."""

    kinds: list[KindPayload]
    capacity: NonNegativeInt = 0

    @classmethod
    def of(cls, steps: list[Step], capacity: int = 0) -> StartPlan:
        """Encode a plan."""
        return cls([_without_data(step.kind) for step in steps], capacity)

    def steps(self) -> list[Step]:
        """Return the steps, without tokens."""
        none = np.zeros(0, np.int32)
        return [Step(none.reshape(0, 0), 0, kind.step_kind(), none, none, none, none) for kind in self.kinds]


class Submit(Struct, frozen=True, forbid_unknown_fields=True, tag="submit"):
    """`Backend.submit`."""

    step: StepPayload
    top: NonNegativeInt = 0


class SamplingPayload(Struct, frozen=True, forbid_unknown_fields=True):
    """How to choose tokens."""

    choice: TokenChoice
    keys: list[NonNegativeInt]
    sampled: Array
    texts: list[Array] = []

    @classmethod
    def of(cls, metadata: SamplingMetadata) -> SamplingPayload:
        """Encode sampling metadata."""
        texts = [Array.of(text) for text in metadata.texts]
        return cls(metadata.choice, [int(key) for key in metadata.keys], Array.of(metadata.sampled), texts)

    def metadata(self) -> SamplingMetadata:
        """Return the sampling metadata."""
        texts = tuple(text.array() for text in self.texts)
        return SamplingMetadata(self.choice, self.keys, self.sampled.array(), texts)


class NextTokensCall(Struct, frozen=True, forbid_unknown_fields=True, tag="next-tokens"):
    """`Backend.next_tokens`."""

    step: StepPayload
    metadata: SamplingPayload | None


class CountRows(Struct, frozen=True, forbid_unknown_fields=True, tag="count-rows"):
    """`Backend.decoding_rows`: all ranks compile for it, but only the result of rank 0 counts."""

    capacity: NonNegativeInt
    wanted: NonNegativeInt
    spare: NonNegativeInt = 0


class Decode(Struct, frozen=True, forbid_unknown_fields=True, tag="decode"):
    """`Decoding.decode`."""

    active: Array


class StartDecoding(Struct, frozen=True, forbid_unknown_fields=True, tag="start-decoding"):
    """`Backend.decoding`."""

    rows: NonNegativeInt
    capacity: NonNegativeInt
    choice: TokenChoice
    shared: bytes = b""


class Prefill(Struct, frozen=True, forbid_unknown_fields=True, tag="prefill"):
    """`Decoding.prefill`."""

    step: StepPayload
    metadata: SamplingPayload | None


class Put(Struct, frozen=True, forbid_unknown_fields=True, tag="put"):
    """`Decoding.put`."""

    row: NonNegativeInt
    position: NonNegativeInt
    text: Array
    key: NonNegativeInt
    sampled: NonNegativeInt


class Narrow(Struct, frozen=True, forbid_unknown_fields=True, tag="narrow"):
    """`Decoding.narrow`."""

    rows: list[NonNegativeInt]


class HalveBudget(Struct, frozen=True, forbid_unknown_fields=True, tag="halve-budget"):
    """`Backend.halve_budget`."""


class FailureConfirmed(Struct, frozen=True, forbid_unknown_fields=True, tag="failure-confirmed"):
    """All ranks have failed at the same call with the same error, and can continue."""


Call = (
    StartPlan
    | Submit
    | NextTokensCall
    | CountRows
    | StartDecoding
    | Prefill
    | Put
    | Decode
    | Narrow
    | HalveBudget
    | FailureConfirmed
)


class Load(Struct, frozen=True, forbid_unknown_fields=True, tag="load"):
    """The model to load, and the user module that loads it: its name at rank 0, and the SHA-256 of its text."""

    version: str
    model: ModelSpec
    user_module: str
    sha256: str


class MaxLength(Struct, frozen=True, forbid_unknown_fields=True, tag="max-length"):
    """The maximum length of a row, in tokens."""

    max_length: NonNegativeInt


class Budget(Struct, frozen=True, forbid_unknown_fields=True, tag="budget"):
    """The limits of a step's size, `birdie_zmq.engine.planning.shape_buckets.StepBudget`."""

    budget: StepBudget


class LoadedModelInfo(Struct, frozen=True, forbid_unknown_fields=True, tag="loaded-model-info"):
    """The model that a follower rank has loaded, compared with the model of rank 0."""

    text_mode: str | None
    pair_mode: str
    generation_mode: str | None
    vocab_size: NonNegativeInt
    num_parameters: NonNegativeInt | None
    dtype: str | None


class LoadFailed(Struct, frozen=True, forbid_unknown_fields=True, tag="load-failed"):
    """A follower rank cannot load the model."""

    error: ErrorReport


class Failed(Struct, frozen=True, forbid_unknown_fields=True, tag="failed"):
    """A call has failed at a follower rank, with an error that has this code."""

    code: str


Message = Call | Load | MaxLength | Budget | LoadedModelInfo | LoadFailed | Failed

encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder().encode

_decoder = msgspec.msgpack.Decoder(Message)


def decode(data: bytes) -> Message:
    """Decode a message.

    Raises:
        MalformedMessage: It is not a valid message.
    """
    try:
        message: Message = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"cannot decode a message of the process group: {error}") from None
    return message


def _without_data(kind: StepKind) -> KindPayload:
    """Encode the kind of a step with empty arrays."""
    payload = KindPayload.of(kind)
    empty = Array("<i4", [0], b"")
    return msgspec.structs.replace(payload, arrays=[empty for _ in payload.arrays])
