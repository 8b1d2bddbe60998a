"""What the first process of a group tells the others: each call of a backend, as bytes and back, with nothing believed. Pure.

Numbers, names and arrays of the plainest kind, in msgpack, held against their types when they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from birdie_zmq.engine.backend import SamplingMetadata
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, Step, StepKind, Tree
from birdie_zmq.errors import MalformedMessage
from birdie_zmq.types import ErrorReport, ModelSpec, SamplingParams

Whole = Annotated[int, Meta(ge=0, lt=2**62)]


class Array(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers in C order."""

    dtype: Literal["<i4", "|b1"]
    shape: Annotated[list[Whole], Meta(max_length=2)]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Array:
        """Describe an array of int32 or bool."""
        return cls(msgspec.convert(array.dtype.str, Literal["<i4", "|b1"]), list(array.shape), array.tobytes())

    def array(self) -> npt.NDArray[Any]:
        """The array.

        Raises:
            MalformedMessage: Its bytes are not as many as its shape says.
        """
        count = 1
        for size in self.shape:
            count *= size
        dtype = np.dtype(self.dtype)
        if count * dtype.itemsize != len(self.data):
            raise MalformedMessage("the bytes of an array are not as many as its shape and dtype say")
        return np.frombuffer(self.data, dtype).reshape(self.shape)


class Reading(Struct, frozen=True, forbid_unknown_fields=True):
    """How the rows of a step are read: `birdie_zmq.engine.planning.steps` says what the words mean."""

    kind: Literal["rows", "branch", "read", "fork", "pairs"]
    arrays: Annotated[list[Array], Meta(max_length=2)] = []
    before: bytes | None = None
    after: bytes | None = None
    room: Whole = 0

    @classmethod
    def of(cls, how: StepKind) -> Reading:
        """Describe it."""
        match how:
            case Dense():
                return cls("rows")
            case Tree(depths, ends, state):
                return cls("branch", [Array.of(depths), Array.of(ends)], before=state)
            case Extend(lengths, before, after, room):
                return cls("read", [Array.of(lengths)], before, after, room)
            case Fork(parents, lengths, room):
                return cls("fork", [Array.of(parents), Array.of(lengths)], room=room)
            case Pairs(label_ids, loss_mask):
                return cls("pairs", [Array.of(label_ids), Array.of(loss_mask)])

    def how(self) -> StepKind:
        """What was described.

        Raises:
            MalformedMessage: It has not as many arrays as its kind.
        """
        match self.kind, [array.array() for array in self.arrays]:
            case "rows", []:
                return Dense()
            case "branch", [depths, ends] if self.before is not None:
                return Tree(depths, ends, self.before)
            case "read", [lengths]:
                return Extend(lengths, self.before, self.after, self.room)
            case "fork", [parents, lengths]:
                return Fork(parents, lengths, self.room)
            case "pairs", [label_ids, loss_mask]:
                return Pairs(label_ids, loss_mask)
        raise MalformedMessage(f"a step that is read as {self.kind} has {len(self.arrays)} arrays")


class ToldStep(Struct, frozen=True, forbid_unknown_fields=True):
    """A step, less whose places they are: who asks is known to the first process alone."""

    tokens: Array
    reading: Reading
    rows: Array
    positions: Array
    targets: Array

    @classmethod
    def of(cls, step: Step) -> ToldStep:
        """Describe a step."""
        arrays = map(Array.of, (step.rows, step.positions, step.targets))
        return cls(Array.of(step.tokens), Reading.of(step.how), *arrays)

    def step(self) -> Step:
        """The step, whose places belong to nobody."""
        rows = self.rows.array()
        owners = np.zeros_like(rows)
        return Step(
            self.tokens.array(), 0, self.reading.how(), rows, self.positions.array(), self.targets.array(), owners
        )


class Open(Struct, frozen=True, forbid_unknown_fields=True, tag="open"):
    """`Backend.open`: of each step only from which state it starts, and the slots that it needs."""

    starts: list[Reading]

    @classmethod
    def of(cls, steps: list[Step]) -> Open:
        """Describe a plan."""
        return cls([_hollow(step.how) for step in steps])

    def steps(self) -> list[Step]:
        """Steps without tokens."""
        none = np.zeros(0, np.int32)
        return [Step(none.reshape(0, 0), 0, start.how(), none, none, none, none) for start in self.starts]


class Submit(Struct, frozen=True, forbid_unknown_fields=True, tag="submit"):
    """`Backend.submit`."""

    step: ToldStep


class ToldDrawing(Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens are drawn."""

    sampling: SamplingParams
    keys: list[Whole]
    drawn: Array

    @classmethod
    def of(cls, drawing: SamplingMetadata) -> ToldDrawing:
        """Describe it."""
        return cls(drawing.sampling, [int(key) for key in drawing.keys], Array.of(drawing.drawn))

    def drawing(self) -> SamplingMetadata:
        """What was described."""
        return SamplingMetadata(self.sampling, self.keys, self.drawn.array())


class Next(Struct, frozen=True, forbid_unknown_fields=True, tag="next"):
    """`Backend.next_tokens`."""

    step: ToldStep
    drawing: ToldDrawing | None


class CountRows(Struct, frozen=True, forbid_unknown_fields=True, tag="count-rows"):
    """`Backend.decoding_rows`, for which all compile; the first process alone decides."""

    capacity: Whole
    wanted: Whole


class Decode(Struct, frozen=True, forbid_unknown_fields=True, tag="decode"):
    """`Decoding.decode`."""

    active: Array


class Begin(Struct, frozen=True, forbid_unknown_fields=True, tag="begin"):
    """`Backend.decoding`."""

    rows: Whole
    capacity: Whole
    sampling: SamplingParams | None


class Put(Struct, frozen=True, forbid_unknown_fields=True, tag="put"):
    """`Decoding.put`."""

    row: Whole
    prompt: Array
    pieces: list[tuple[Whole, Whole, Whole, bool]]
    key: Whole
    drawn: Whole

    def planned(self) -> list[PrefillChunk]:
        """The pieces of the prompt."""
        return [PrefillChunk(*piece) for piece in self.pieces]


class Narrow(Struct, frozen=True, forbid_unknown_fields=True, tag="narrow"):
    """`Decoding.narrow`."""

    rows: list[Whole]


class Halve(Struct, frozen=True, forbid_unknown_fields=True, tag="halve"):
    """`Backend.halve_budget`."""


class Agreed(Struct, frozen=True, forbid_unknown_fields=True, tag="agreed"):
    """All have failed at the same call, and go on together."""


Call = Open | Submit | Next | CountRows | Begin | Put | Decode | Narrow | Halve | Agreed


class Load(Struct, frozen=True, forbid_unknown_fields=True, tag="load"):
    """Which model to load, and by which page: its name at the first process, and the hash of its text."""

    version: str
    model: ModelSpec
    page: str
    sha256: str


class Prepared(Struct, frozen=True, forbid_unknown_fields=True, tag="prepared"):
    """The longest row that there will be."""

    max_length: Whole


class Budget(Struct, frozen=True, forbid_unknown_fields=True, tag="budget"):
    """What bounds a step; as `birdie_zmq.engine.planning.shape_buckets.StepBudget`."""

    budget: StepBudget


class LoadedHere(Struct, frozen=True, forbid_unknown_fields=True, tag="loaded-here"):
    """What another process has loaded, to be held against what the first one has."""

    ability: str
    vocab_size: Whole
    num_parameters: Whole | None
    dtype: str | None


class Refused(Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """Another process cannot load the model."""

    error: ErrorReport


class Failed(Struct, frozen=True, forbid_unknown_fields=True, tag="failed"):
    """What a call has come to at another process: the code of an error."""

    code: str


Told = Call | Load | Prepared | Budget | LoadedHere | Refused | Failed

encode: Callable[[Told], bytes] = msgspec.msgpack.Encoder().encode

_decoder = msgspec.msgpack.Decoder(Told)


def decode(data: bytes) -> Told:
    """What was told.

    Raises:
        MalformedMessage: It is none of these.
    """
    try:
        told: Told = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"what a process of the group told makes no sense: {error}") from None
    return told


def _hollow(how: StepKind) -> Reading:
    """How a step is read, with nothing in its arrays."""
    reading = Reading.of(how)
    nothing = Array("<i4", [0], b"")
    return msgspec.structs.replace(reading, arrays=[nothing for _ in reading.arrays])
