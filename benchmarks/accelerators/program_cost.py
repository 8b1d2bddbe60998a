"""Count the operations and the bytes of an optimised XLA program, with loops multiplied by how often they turn.

Only instructions that the device runs count: fusions, calls of libraries, copies. A fusion reads its operands and writes
its result, or the slices of them that it uses. Matrix products and flash attention are counted by formula.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

_ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.+?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class Cost(NamedTuple):
    """Operations, bytes that are read or written, and seconds in which each instruction takes the longer of both."""

    operations: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """Return the sum of this cost and another, the other some times."""
        return Cost(*(x + times * y for x, y in zip(self, other, strict=True)))


class Shape(NamedTuple):
    """An array of a program."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.sizes) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: list[Shape]  # of a tuple, those of its elements
    opcode: str
    operands: list[str]
    text: str


@dataclass
class Program:
    """An optimised program.

    Attributes:
        text: As XLA prints it.
        flops: The peak rate of the device, in operations per second.
        bandwidth: The bandwidth of its memory, in bytes per second.
        filled: The number of filled slots of each row of a KV cache; None for all.
    """

    text: str
    flops: float
    bandwidth: float
    filled: int | None = None
    _bodies: dict[str, list[_Instruction]] = field(default_factory=dict)

    def cost(self) -> Cost:
        """Return the cost of the whole program."""
        for header, body in re.findall(r"^((?:ENTRY )?%\S+) [^\n]*\{$\n(.*?)^\}", self.text, re.S | re.M):
            name = "ENTRY" if header.startswith("ENTRY") else header.lstrip("%")
            self._bodies[name] = [_parse(match) for line in body.splitlines() if (match := _INSTRUCTION.match(line))]
        return self._of_body("ENTRY")

    def _of_body(self, name: str) -> Cost:
        body, total = self._bodies[name], Cost()
        shapes = {each.name: each.shapes for each in body}
        for each in body:
            if each.opcode == "while":
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.text)
                assert turns is not None, f"the loop {each.name} has no known length"
                total = total.plus(self._of_body(_called(each, "body")), int(turns[1]))
            elif each.opcode not in _FREE and not each.opcode.endswith("-done"):
                total = total.plus(
                    self._of_instruction(each, [s for x in each.operands for s in shapes.get(x, [])[:1]])
                )
        return total

    def _of_instruction(self, each: _Instruction, operands: list[Shape]) -> Cost:
        operations, moved = 0.0, float(sum(x.bytes for x in [*operands, *each.shapes]))
        if each.opcode in ("fusion", "fusion-start"):
            moved = self._of_fusion(each)
            body = self._bodies[_called(each, "calls")]
            shapes = {inner.name: inner.shapes for inner in body}
            products = [inner for inner in body if "__cublas" in inner.text]
            operations = sum(_product(inner, [shapes[x][0] for x in inner.operands])[0] for inner in products)
        elif each.opcode in ("dynamic-slice", "slice", "gather"):
            moved = 2.0 * each.shapes[0].bytes
        elif each.opcode == "dynamic-update-slice":
            moved = 2.0 * operands[1].bytes
        elif "__cublas" in each.text:
            operations, moved = _product(each, operands)
        elif "__cudnn$fmha" in each.text:
            operations, moved = _flash(each, operands, self.filled)
        return Cost(operations, moved, max(operations / self.flops, moved / self.bandwidth))

    def _of_fusion(self, fusion: _Instruction) -> float:
        """Return the bytes that a fusion reads and writes; a parameter that is only sliced counts as its slices."""
        body = self._bodies[_called(fusion, "calls")]
        shapes = {each.name: each.shapes[0] for each in body if each.shapes}
        moved, overwritten = 0.0, set()
        for each in body:
            if each.opcode == "dynamic-update-slice":
                overwritten.add(each.operands[0])
                moved += 2 * shapes[each.operands[1]].bytes
            elif each.opcode == "scatter":
                overwritten.add(each.operands[0])
                moved += 2 * shapes[each.operands[2]].bytes
        aliases = _aliases(body)
        overwritten |= {aliases[name] for name in overwritten if name in aliases}
        for each in body:
            if each.opcode == "parameter" and each.name not in overwritten:
                users = [user for user in body if each.name in {aliases.get(x, x) for x in user.operands}]
                users = [user for user in users if user.opcode not in ("bitcast",)]
                sliced = users and all(user.opcode in ("dynamic-slice", "gather", "slice") for user in users)
                slices = sum(user.shapes[0].bytes for user in users)
                moved += min(slices, each.shapes[0].bytes) if sliced else each.shapes[0].bytes
        # A fusion that is started alone lists its operands among its results; the last instruction has the result.
        results = fusion.shapes if fusion.opcode == "fusion" else body[-1].shapes
        whole = [each.bytes for each in results]
        written = {shapes[name].bytes for name in overwritten if name in shapes}
        return moved + sum(size for size in whole if size not in written)


def _aliases(body: list[_Instruction]) -> dict[str, str]:
    """Return what each bitcast of a fusion is a view of."""
    found: dict[str, str] = {}
    for each in body:
        if each.opcode == "bitcast":
            found[each.name] = found.get(each.operands[0], each.operands[0])
    return found


def _parse(match: re.Match[str]) -> _Instruction:
    name, shape, opcode, rest = match.groups()
    depth, end = 1, 0
    for letter in rest:
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            break
        end += 1
    shapes = [Shape(dtype, tuple(int(x) for x in sizes.split(",") if x)) for dtype, sizes in _SHAPE.findall(shape)]
    operands = re.findall(r"%([^\s,)]+)", rest[:end])
    return _Instruction(name, [x for x in shapes if x.dtype in _ITEM_BYTES], opcode, operands, rest)


def _called(each: _Instruction, kind: str) -> str:
    found = re.search(rf"{kind}=%([^\s,)]+)", each.text)
    assert found is not None
    return found[1]


def _product(each: _Instruction, operands: list[Shape]) -> tuple[float, float]:
    """Return the operations and bytes of a matrix product of cuBLAS."""
    found = re.search(r'"lhs_contracting_dimensions":\[([^]]*)\]', each.text)
    assert found is not None
    inner = math.prod(operands[0].sizes[int(x)] for x in re.findall(r"\d+", found[1]))
    out = each.shapes[0]
    return 2.0 * math.prod(out.sizes) * inner, float(sum(x.bytes for x in operands) + out.bytes)


def _flash(each: _Instruction, operands: list[Shape], filled: int | None) -> tuple[float, float]:
    """Return the operations and bytes of flash attention of queries [b, t, n, h] and keys [b or pages, s, k, h]."""
    batch, length, heads, width = operands[0].sizes
    _, slots, groups, _ = operands[1].sizes
    found = re.search(r'"mask_type":\s*"(\w+)"', each.text)
    mask = found[1] if found else "NO_MASK"
    seen = {"CAUSAL": slots / 2, "PADDING": slots if filled is None else min(filled, slots)}.get(mask, slots)
    operations = 4.0 * batch * heads * length * seen * width
    read = slots if mask == "CAUSAL" else seen
    moved = 2.0 * operands[0].bytes + 2 * batch * read * groups * width * _ITEM_BYTES[operands[1].dtype]
    if "Bias" in each.text:
        moved += operands[3].bytes * heads
    return operations, moved
