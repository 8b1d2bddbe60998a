"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), with the scaling types for longer texts.

transformers gathers the scaling type and its numbers under ``rope_parameters``:

- ``default``: no scaling;
- ``linear``: every frequency is divided by a factor (Chen et al., 2023, arXiv:2306.15595);
- ``llama3``: frequencies of long wavelengths are divided by a factor, frequencies of short ones are kept, and a linear
  blend of both is used in between (Llama 3.1);
- ``yarn``: the same with a ramp over dimensions, and scaled attention (Peng et al., 2023, arXiv:2309.00071);
- ``proportional``: only the highest frequencies of a head are kept, the others are zero (Gemma 4);
- ``dynamic``: no scaling for texts within ``max_position_embeddings``; longer texts are not supported;
- ``longrope``: a factor for each frequency, and scaled attention (Ding et al., 2024, arXiv:2402.13753); only texts within
  the original length are supported.

Frequencies are computed in float32 as in transformers: at position 8,000 a float64 angle already differs by 1e-3.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.models.config_fields import ConfigReader

KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn")
"""The supported values of ``rope_type``."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rope:
    """A rotation of the first `width` dimensions of a head.

    Attributes:
        width: Even; dimension i is paired with i + width / 2 ("rotate_half", as most of Hugging Face's weights require).
        theta: The base of the wavelengths.
        kind: How frequencies are scaled: default, linear, llama3, yarn or proportional.
        factor: The scaling factor: how much longer the texts may be.
        original_length: The maximum length before scaling (llama3, yarn).
        low, high: ``low_freq_factor`` and ``high_freq_factor`` of llama3; ``beta_slow`` and ``beta_fast`` of yarn.
        attention_factor: The factor of cos and sin (yarn, longrope).
        truncate: Whether yarn's ramp begins and ends at whole dimensions.
        factors: Each frequency is divided by one of these, if there are any (longrope, GGUF files).
        position_limit: The number of positions for which the frequencies hold; None for any number.
        interleaved: Whether dimension 2i is paired with 2i + 1 instead.
        rotated: Number of pairs that are rotated, those of the highest frequencies (proportional).
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
    position_limit: int | None = None
    interleaved: bool = False
    rotated: int = 0

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
        if self.factors and (len(self.factors) != self.width // 2 or min(self.factors) <= 0):
            raise ValueError(f"RoPE needs {self.width // 2} factors above 0, one for each frequency")

    def frequencies(self) -> npt.NDArray[np.float32]:
        """Return the frequencies in radians per position, float32 [width / 2]."""
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        plain = np.float32(1) / np.float32(self.theta) ** exponents
        factor = np.float32(self.factor)
        if self.factors:
            plain = np.float32(1) / (np.asarray(self.factors, np.float32) * np.float32(self.theta) ** exponents)
        match self.kind:
            case "linear":
                return np.asarray(plain / factor)
            case "llama3":
                return self._blend(plain, self._kept_share_by_wavelength(plain))
            case "yarn":
                return self._blend(plain, self._kept_share_by_dimension())
            case "proportional":
                return np.where(np.arange(len(plain)) < self.rotated, plain / factor, np.float32(0))
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


def read_rope(config: ConfigReader, head_width: int, *, section: str | None = None, partial: bool = False) -> Rope:
    """Read the rotary embedding from a model's configuration.

    Args:
        config: The configuration as `birdie_zmq.models.config` returns it: transformers has completed ``rope_parameters``.
        head_width: Number of dimensions of a head.
        section: The key under ``rope_parameters``, for models whose layer types differ.
        partial: Whether the family rotates only the share ``partial_rotary_factor`` of a head's dimensions.

    Raises:
        ValueError: The scaling type or the share is not supported, or a number that the type needs is missing.
    """
    parameters = config.record("rope_parameters")
    if section is not None:
        parameters = parameters.record(section)
    kind, theta = parameters.text("rope_type"), parameters.number("rope_theta")
    share = parameters.number("partial_rotary_factor", 1.0)
    if kind == "proportional":
        factor, rotated = parameters.number("factor", 1.0), int(share * head_width // 2)
        return Rope(head_width, theta, kind, factor, rotated=rotated)
    if share != 1 and kind != "default" and not partial:
        # transformers ignores the share for the type default, and fails with any other type.
        raise ValueError(
            f"partial_rotary_factor={share} with the rope_type {kind!r} is not supported for this model_type"
        )
    width = int(head_width * share) if partial else head_width
    match kind:
        case "default":
            return Rope(width, theta)
        case "dynamic":
            return Rope(width, theta, position_limit=config.integer("max_position_embeddings"))
        case "linear":
            return Rope(width, theta, kind, parameters.number("factor"))
        case "llama3":
            low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
            original = parameters.integer("original_max_position_embeddings")
            return Rope(width, theta, kind, parameters.number("factor"), original, low, high)
        case "yarn":
            return _read_yarn(config, parameters, width, theta)
        case "longrope":
            return _read_longrope(config, parameters, width, theta)
    raise ValueError(f"rope_parameters has the unknown rope_type {kind!r}; supported: {', '.join(KINDS)}")


def _read_yarn(config: ConfigReader, parameters: ConfigReader, width: int, theta: float) -> Rope:
    original = parameters.integer("original_max_position_embeddings")
    factor = parameters.number("factor", config.integer("max_position_embeddings") / max(original, 1))
    slow, fast = parameters.number("beta_slow", 1.0), parameters.number("beta_fast", 32.0)
    truncate = parameters.flag("truncate", True)
    return Rope(
        width, theta, "yarn", factor, original, slow, fast, _yarn_attention_factor(parameters, factor), truncate
    )


def _read_longrope(config: ConfigReader, parameters: ConfigReader, width: int, theta: float) -> Rope:
    """Read LongRoPE up to its original length, where a text has the short factors.

    A longer text has other factors at all of its positions, so texts of both kinds cannot share a prefix.
    """
    original, longest = (
        parameters.integer("original_max_position_embeddings"),
        config.integer("max_position_embeddings"),
    )
    factors = parameters.numbers("short_factor", width // 2)
    if original < 2:
        raise ValueError(f"longrope needs original_max_position_embeddings above 1, not {original}")
    factor = parameters.number("factor", longest / original)
    scaled = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention_factor = parameters.number("attention_factor", scaled)
    if original < longest:
        logger.warning(
            "longrope is supported up to the original length of %d tokens, which is now max_length; the model's own "
            "max_position_embeddings is %d",
            original,
            longest,
        )
    return Rope(width, theta, attention_factor=attention_factor, factors=factors, position_limit=original)


def _yarn_attention_factor(parameters: ConfigReader, factor: float) -> float:
    """Return the factor of yarn's cos and sin: as configured, or from the factor as in section 3.4 of the paper."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in parameters:
        return parameters.number("attention_factor")
    weights = [parameters.number(name, 0.0) for name in ("mscale", "mscale_all_dim")]
    return scale(weights[0]) / scale(weights[1]) if all(weights) else scale(1.0)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array], *, interleaved: bool = False) -> jax.Array:
    """Rotate the first dimensions of heads [b, t, n, h] by the `Rope.tables` of positions [b or 1, t].

    Computed in float32; the result has the dtype of x. If the pairs are interleaved, the result has the first dimensions
    of all pairs before the second ones. Products of queries and keys do not depend on the order.
    """
    cos, sin = (table[:, :, None] for table in tables)
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    if interleaved:
        first, second = wide[..., : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    else:
        first, second = wide[..., :half], wide[..., half : 2 * half]
    rest = wide[..., 2 * half :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
