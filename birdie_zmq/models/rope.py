"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), with the scaling types for longer texts.

A config file names the scaling type under ``rope_parameters``, or in old files under ``rope_scaling``:

- ``default``: no scaling;
- ``linear``: every frequency is divided by a factor (Chen et al., 2023, arXiv:2306.15595);
- ``llama3``: frequencies of long wavelengths are divided by a factor, frequencies of short ones are kept, and a linear
  blend of both is used in between (Llama 3.1);
- ``yarn``: the same with a ramp over dimensions, and scaled attention (Peng et al., 2023, arXiv:2309.00071).

Frequencies are computed in float32 as in transformers: at position 8,000 a float64 angle already differs by 1e-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.models.config_fields import ConfigReader

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """A rotation of the first `width` dimensions of a head.

    Attributes:
        width: Even; dimension i is paired with i + width / 2 ("rotate_half", as Hugging Face's weights require).
        theta: The base of the wavelengths.
        kind: The scaling type, one of `KINDS`.
        factor: The scaling factor: how much longer the texts may be.
        original_length: The maximum length before scaling (llama3, yarn).
        low, high: ``low_freq_factor`` and ``high_freq_factor`` of llama3; ``beta_slow`` and ``beta_fast`` of yarn.
        attention_factor: The factor of cos and sin (yarn).
        truncate: Whether yarn's ramp begins and ends at whole dimensions.
        factors: Divisors of the plain frequencies, one for each of the width / 2; empty for none.
    """

    width: int
    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low: float = 1.0
    high: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ValueError(f"a head of {self.width} dimensions cannot be rotated in pairs (RoPE)")
        if not (self.theta > 0 and self.factor > 0):
            raise ValueError(f"rope_theta={self.theta} and factor={self.factor} must be above 0 (RoPE)")
        if self.kind in ("llama3", "yarn") and not (self.original_length > 0 and 0 < self.low < self.high):
            raise ValueError(
                f"{self.kind} needs original_max_position_embeddings above 0 and two different limits, the lower first, "
                f"not {self.original_length}, {self.low} and {self.high} (RoPE)"
            )

    def frequencies(self) -> npt.NDArray[np.float32]:
        """Return the frequencies in radians per position, float32 [width / 2]."""
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        plain = np.float32(1) / np.float32(self.theta) ** exponents
        factor = np.float32(self.factor)
        if self.factors:
            return np.asarray(plain / np.asarray(self.factors, np.float32))
        match self.kind:
            case "linear":
                return np.asarray(plain / factor)
            case "llama3":
                return self._blend(plain, self._kept_share_by_wavelength(plain))
            case "yarn":
                return self._blend(plain, self._kept_share_by_dimension())
        return plain

    def tables(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return cos and sin of the angles at positions int32 [..., t], both float32 [..., t, width / 2]."""
        frequencies = jnp.expand_dims(jnp.asarray(self.frequencies()), range(positions.ndim))
        angles = positions.astype(jnp.float32)[..., None] * frequencies
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor

    def _blend(self, plain: npt.NDArray[np.float32], kept: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return plain / np.float32(self.factor) * (1 - kept) + plain * kept

    def _kept_share_by_wavelength(self, plain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the unscaled share of each frequency, by the number of its periods in the original length."""
        periods = np.float32(self.original_length) * plain / np.float32(2 * math.pi)
        kept = (periods - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(np.clip(kept, 0, 1), np.float32)

    def _kept_share_by_dimension(self) -> npt.NDArray[np.float32]:
        """Return the unscaled share of each frequency, by a ramp from the dimension of `high` periods to that of `low`."""

        def dimension(periods: float) -> float:
            return self.width * math.log(self.original_length / (periods * 2 * math.pi)) / (2 * math.log(self.theta))

        first, last = dimension(self.high), dimension(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.width - 1)
        if first == last:
            last += 0.001  # avoids a division by zero as transformers and the paper's code do
        ramp = (np.arange(self.width // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
        return np.asarray(1 - np.clip(ramp, 0, 1), np.float32)


def read_rope(config: ConfigReader, width: int, *, section: str | None = None, theta: float = 10_000.0) -> Rope:
    """Read the rotary embedding from a model's config.

    Args:
        config: The model's config, which has ``max_position_embeddings``.
        width: Number of rotated dimensions of a head.
        section: The key under ``rope_parameters``, for models whose layer types differ.
        theta: The default of ``rope_theta``.

    Raises:
        ValueError: The scaling type is unknown, or a number that it needs is missing.
    """
    scaling = config.record("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    if section is not None:
        scaling = scaling.record(section)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"rope_scaling has the unknown type {kind!r}; supported: {', '.join(KINDS)}")
    theta = scaling.number("rope_theta", config.number("rope_theta", theta))
    if kind == "default":
        return Rope(width, theta)
    factor = scaling.number("factor")
    if kind == "linear":
        return Rope(width, theta, kind, factor)
    original = scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        return Rope(width, theta, kind, factor, original, low, high)
    slow, fast = scaling.number("beta_slow", 1.0), scaling.number("beta_fast", 32.0)
    truncate = scaling.flag("truncate", True)
    return Rope(width, theta, kind, factor, original, slow, fast, _yarn_attention_factor(scaling, factor), truncate)


def _yarn_attention_factor(scaling: ConfigReader, factor: float) -> float:
    """Return the factor of yarn's cos and sin: as configured, or from the factor as in section 3.4 of the paper."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in scaling:
        return scaling.number("attention_factor")
    if (
        "mscale" in scaling
        and "mscale_all_dim" in scaling
        and scaling.number("mscale")
        and scaling.number("mscale_all_dim")
    ):
        return scale(scaling.number("mscale")) / scale(scaling.number("mscale_all_dim"))
    return scale(1.0)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the first dimensions of heads [b, t, n, h] by the `Rope.tables` of positions [b or 1, t].

    Computed in float32; the result has the dtype of x.
    """
    cos, sin = (table[:, :, None] for table in tables)
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
