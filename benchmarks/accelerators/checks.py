"""The steps that must compile for each chip, and their bounds."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.accelerators.compiling import Facts
from benchmarks.accelerators.steps import StepShape

MIB = 2**20


@dataclass(frozen=True)
class Check:
    """A step, and what must hold of it.

    Attributes:
        chip: The kind of device.
        model: The model.
        dtype: The dtype of the weights.
        shape: The step.
        temporary_mib: Bound of the temporary memory of a device, in MiB; None for a tenth of the state.
        flash: Whether a kernel must compute attention.
        devices: The number of devices over which the weights are sharded.
    """

    chip: str
    model: str
    dtype: str
    shape: str
    temporary_mib: int | None = None
    flash: bool = True
    devices: int = 1

    def __str__(self) -> str:
        devices = f" on {self.devices}" if self.devices > 1 else ""
        return f"{self.chip}{devices} {self.model} {self.dtype} {self.shape}"

    @property
    def step(self) -> StepShape:
        """The shape of the step."""
        return StepShape.parse(self.shape)

    def faults(self, facts: Facts) -> list[str]:
        """Return what does not hold."""
        found = []
        bound = facts.state_bytes // 10 if self.temporary_mib is None else self.temporary_mib * MIB
        if facts.temporary_bytes > bound:
            found.append(f"temporary memory of {facts.temporary_bytes / MIB:.0f} MiB, more than {bound / MIB:.0f}")
        if facts.unknown_loops:
            found.append(f"{facts.unknown_loops} loops of unknown length")
        if self.flash and not facts.flash:
            found.append("no flash attention")
        if facts.state_bytes and not facts.in_place:
            found.append("the state is copied")
        return found


CHECKS = (
    Check("h200", "1b", "bfloat16", "texts:4x2048", 512),
    Check("h200", "1b", "bfloat16", "trees:16x1024", 1024),
    Check("h200", "1b", "bfloat16", "trees:16x1024@4096", 1280),
    Check("h200", "1b", "bfloat16", "extend:1x1024@8192", 256),
    Check("h200", "1b", "bfloat16", "extend:1x4096@65536", 512),
    Check("h200", "1b", "bfloat16", "decode:64@2048"),
    Check("h200", "1b", "bfloat16", "head:1024", 1152, flash=False),
    Check("h200", "1b", "float32", "trees:16x1024", 2048, flash=False),
    Check("h200", "1b", "float32", "decode:64@2048", flash=False),
    Check("h200", "14b", "bfloat16", "trees:16x1024", 2048),
    Check("h200", "14b", "bfloat16", "extend:1x1024@8192", 1024),
    Check("h200", "14b", "bfloat16", "extend:1x4096@65536", 1536),
    Check("h200", "14b", "bfloat16", "decode:64@2048"),
    Check("h200", "14b", "float32", "decode:16@2048", flash=False),
    Check("h200", "14b", "bfloat16", "trees:16x1024", 1024, devices=4),
    Check("h200", "14b", "bfloat16", "extend:1x1024@8192", 256, devices=4),
    Check("h200", "14b", "bfloat16", "decode:64@2048", devices=4),
    Check("h200", "windows", "bfloat16", "texts:4x2048", 512),  # heads of 256
    Check("h200", "windows", "bfloat16", "trees:16x1024", 1024),
    Check("h200", "windows", "bfloat16", "extend:1x1024@8192", 256),
    Check("h200", "windows", "bfloat16", "decode:64@2048"),
    Check("h200", "alternating", "bfloat16", "trees:16x1024", 1536),
    Check("h200", "alternating", "bfloat16", "decode:64@2048"),
    Check("h200", "experts", "bfloat16", "trees:16x1024", 1536),
    Check("h200", "experts", "bfloat16", "extend:1x1024@8192", 256),
    Check("h200", "experts", "bfloat16", "decode:64@2048"),
    Check("h200", "convolutions", "bfloat16", "trees:16x1024", 1280),
    Check("h200", "convolutions", "bfloat16", "extend:1x1024@8192", 384),
    Check("h200", "convolutions", "bfloat16", "decode:64@2048"),
    Check("h200", "recurrences", "bfloat16", "extend:1x1024@8192", 256),
    Check("h200", "recurrences", "bfloat16", "decode:64@2048"),
    Check("h200", "delta_rule", "bfloat16", "extend:1x1024@8192", 512),  # heads of 256
    Check("h200", "delta_rule", "bfloat16", "decode:64@2048"),
    Check("v5e", "1b", "bfloat16", "texts:4x2048", 512),
    Check("v5e", "1b", "bfloat16", "trees:16x1024", 1024, flash=False),
    Check("v5e", "1b", "bfloat16", "extend:1x1024@8192", 512),
    Check("v5e", "1b", "bfloat16", "extend:1x4096@65536", 1024),
    Check("v5e", "1b", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "windows", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "1b", "float32", "decode:16@2048", flash=False),
    Check("v5e", "experts", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "convolutions", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "recurrences", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "delta_rule", "bfloat16", "decode:64@2048", flash=False),
    Check("v5e", "14b", "bfloat16", "trees:4x1024", 2048, flash=False, devices=4),
    Check("v5e", "14b", "bfloat16", "decode:16@2048", flash=False, devices=4),
)
