"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), plain and stretched to longer texts.

Four kinds of stretching are in use under ``rope_scaling`` of old, ``rope_parameters`` of new config files:

- ``default``: none;
- ``linear``: every frequency divided by a factor (Chen et al., 2023, arXiv:2306.15595);
- ``llama3``: long wavelengths divided by a factor, short ones kept, a linear blend of both between (Llama 3.1);
- ``yarn``: the same idea with a ramp over dimensions, and attention scaled (Peng et al., 2023, arXiv:2309.00071).

Frequencies are computed in float32, as transformers does: at position 8,000 a float64 angle already differs by 1e-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.models.config_fields import Fields

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """The angles by which the first `width` dimensions of a head are turned.

    Attributes:
        width: Even; dimension i is paired with i + width / 2 ("rotate_half", as Hugging Face's weights need it).
        theta: The base of the wavelengths.
        kind: One of `KINDS`.
        factor: How much longer the texts may be.
        original_length: The length before stretching (llama3, yarn).
        low, high: ``low_freq_factor`` and ``high_freq_factor`` of llama3; ``beta_slow`` and ``beta_fast`` of yarn.
        attention_factor: What cos and sin are multiplied by (yarn).
        whole_steps: Whether yarn's ramp begins and ends at whole dimensions (``truncate``).
    """

    width: int
    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low: float = 1.0
    high: float = 1.0
    attention_factor: float = 1.0
    whole_steps: bool = True

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
        """Radians a position, float32 [width / 2]."""
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        plain = np.float32(1) / np.float32(self.theta) ** exponents
        factor = np.float32(self.factor)
        match self.kind:
            case "linear":
                return np.asarray(plain / factor)
            case "llama3":
                return self._blend(plain, self._kept_by_wavelength(plain))
            case "yarn":
                return self._blend(plain, self._kept_by_dimension())
        return plain

    def tables(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cos and sin of the angles at positions int32 [..., t], both float32 [..., t, width / 2]."""
        frequencies = jnp.expand_dims(jnp.asarray(self.frequencies()), range(positions.ndim))
        angles = positions.astype(jnp.float32)[..., None] * frequencies
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor

    def _blend(self, plain: npt.NDArray[np.float32], kept: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return plain / np.float32(self.factor) * (1 - kept) + plain * kept

    def _kept_by_wavelength(self, plain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The share of each frequency that stays as it was, by how often its wave fits into the original length."""
        turns = np.float32(self.original_length) * plain / np.float32(2 * math.pi)
        kept = (turns - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(np.clip(kept, 0, 1), np.float32)

    def _kept_by_dimension(self) -> npt.NDArray[np.float32]:
        """The share of each frequency that stays, by a ramp from the dimension of `high` turns to that of `low`."""

        def dimension(turns: float) -> float:
            return self.width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        first, last = dimension(self.high), dimension(self.low)
        if self.whole_steps:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.width - 1)
        if first == last:
            last += 0.001  # as transformers and the paper's own code avoid the division by zero
        ramp = (np.arange(self.width // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
        return np.asarray(1 - np.clip(ramp, 0, 1), np.float32)


def read_rope(config: Fields, width: int, *, section: str | None = None, theta: float = 10_000.0) -> Rope:
    """Read how a model turns its heads.

    Args:
        config: The model's config, which has ``max_position_embeddings``.
        width: How many dimensions of a head are turned.
        section: The key under ``rope_parameters`` where kinds of layers differ.
        theta: What a missing ``rope_theta`` means.

    Raises:
        ValueError: A kind of stretching that is not known, or a number that it needs is missing.
    """
    given = config.record("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    if section is not None:
        given = given.record(section)
    kind = given.text("rope_type", given.text("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"rope_type={kind!r} is not supported, only {', '.join(KINDS)}")
    theta = given.number("rope_theta", config.number("rope_theta", theta))
    if kind == "default":
        return Rope(width, theta)
    factor = given.number("factor")
    if kind == "linear":
        return Rope(width, theta, kind, factor)
    original = given.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        return Rope(width, theta, kind, factor, original, low, high)
    slow, fast = given.number("beta_slow", 1.0), given.number("beta_fast", 32.0)
    whole = given.flag("truncate", True)
    return Rope(width, theta, kind, factor, original, slow, fast, _yarn_attention(given, factor), whole)


def _yarn_attention(given: Fields, factor: float) -> float:
    """The scale of yarn's cos and sin: given, or from the factor as the paper's section 3.4 does."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in given:
        return given.number("attention_factor")
    if "mscale" in given and "mscale_all_dim" in given and given.number("mscale") and given.number("mscale_all_dim"):
        return scale(given.number("mscale")) / scale(given.number("mscale_all_dim"))
    return scale(1.0)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn the first dimensions of every head, [b, t, n, h], by `Rope.tables` of positions [b or 1, t].

    In float32, back to the dtype of x.
    """
    cos, sin = (table[:, :, None] for table in tables)
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return turned.astype(x.dtype)
