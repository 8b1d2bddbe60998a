"""Kernels, in XLA or in an interpreter, compared with attention on a CPU; and the check that they pass before they are used."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.engine.jax.sharding import make_mesh
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.errors import UsageError
from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.attention import (
    AttentionImplementation,
    AttentionMetadata,
    AttentionOptions,
    CachedTokens,
    CacheSize,
    KeysValues,
    Target,
    attention_for,
    cudnn,
    kernel_check,
    selection,
)
from birdie_zmq.models.attention.blockwise import BlockwiseAttention
from birdie_zmq.models.attention.cudnn import CudnnKernel, PagedCudnnKernel
from birdie_zmq.models.attention.kernel_check import agrees_with_xla
from birdie_zmq.models.attention.splash import SplashKernel
from birdie_zmq.models.attention.static_shapes import FlashKernel, PartialAttention, StaticAttention

HEADS, GROUPS, WIDTH, LAYERS, LAYER, CAPACITY = 4, 2, 64, 3, 2, 128
PLAIN = AttentionOptions(WIDTH**-0.5)
TOLERANCE = 0.02
"""Means of normally distributed values, in bfloat16, and merged from two of them."""

Lengths = tuple[int, ...]


@pytest.fixture
def cudnn_in_xla(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute what cuDNN would."""
    monkeypatch.setattr(cudnn, "_MODULE", "tests.models.attention.cudnn_in_xla")
    cudnn.is_available.cache_clear()
    agrees_with_xla.cache_clear()
    yield
    cudnn.is_available.cache_clear()
    agrees_with_xla.cache_clear()


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def attend(
    implementation: AttentionImplementation, options: AttentionOptions, length: int, lengths: Lengths, trees: bool
) -> jax.Array:
    """Attend from three rows of tokens after a cache with these numbers of tokens in its rows, in bfloat16."""
    generator = np.random.default_rng(0)

    def sample(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal(shape, np.float32), jnp.bfloat16)

    query = 2 * sample(3, length, HEADS, WIDTH)
    own = KeysValues(*(sample(3, GROUPS, length, WIDTH) for _ in range(2)))
    past, before = [], jnp.zeros((1, 1), jnp.int32)
    if lengths:
        cache = implementation.create_cache(len(lengths), CacheSize(LAYERS, GROUPS, WIDTH), CAPACITY, jnp.bfloat16)
        new = KeysValues(*(sample(LAYERS, len(lengths), GROUPS, max(lengths), WIDTH) for _ in range(2)))
        cache = implementation.append_tokens(cache, 0, new, jnp.zeros(len(lengths), jnp.int32))
        filled = jnp.array(lengths, jnp.int32)
        past.append(CachedTokens((cache,), filled, jnp.int32(0)).layer(0, jnp.int32(LAYER)))
        before = filled[:, None]
    index = jnp.arange(length, dtype=jnp.int32)[None]
    ends = jnp.where(index < 3, length, jnp.where(index < 9, 9, length)) if trees else None
    metadata = AttentionMetadata(before + index, None if ends is None else jnp.broadcast_to(ends, (3, length)))
    return implementation.attend(query, own, past, metadata, options)


@pytest.mark.parametrize(
    ("kernel", "options", "length", "lengths", "trees"),
    [
        (CudnnKernel(), PLAIN, 24, (), False),
        (CudnnKernel(), PLAIN._replace(window=5), 24, (), False),
        (CudnnKernel(), PLAIN._replace(window=5), 24, (), True),
        (CudnnKernel(), PLAIN, 24, (100,), True),  # one cached row for all
        (CudnnKernel(), PLAIN, 24, (100, 0, 128), False),
        (PagedCudnnKernel(), PLAIN, 1, (100, 0, 128), False),
    ],
)
def test_cudnn_gives_the_attention_of_a_cpu(
    cudnn_in_xla: None, kernel: FlashKernel, options: AttentionOptions, length: int, lengths: Lengths, trees: bool
) -> None:
    case = (options, length, lengths, trees)
    got, expected = (
        attend(each, *case).astype(jnp.float32) for each in (StaticAttention(kernel), BlockwiseAttention())
    )
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "length", "lengths"),
    [
        (PLAIN, 150, ()),
        (PLAIN._replace(window=40, softcap=2.0), 150, ()),
        (PLAIN._replace(softcap=2.0), 2, (100, 0, 128)),
    ],
)
def test_splash_gives_the_attention_of_a_cpu(options: AttentionOptions, length: int, lengths: Lengths) -> None:
    case = (options, length, lengths, False)
    kernels = StaticAttention(SplashKernel(interpret=True)), BlockwiseAttention()
    got, expected = (attend(each, *case).astype(jnp.float32) for each in kernels)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (PLAIN._replace(softcap=2.0), "bfloat16"),
        (PLAIN._replace(alibi=Alibi(HEADS)), "bfloat16"),
        (PLAIN._replace(scale=jnp.float32(0.5)), "bfloat16"),
        (PLAIN, "float32"),
    ],
)
def test_cudnn_leaves_to_xla_what_it_does_not_support(options: AttentionOptions, dtype: str) -> None:
    query = jnp.zeros((1, 24, HEADS, WIDTH), dtype)
    own = KeysValues(*[jnp.zeros((1, GROUPS, 24, WIDTH), dtype)] * 2)
    assert CudnnKernel().own(query, own, AttentionMetadata(jnp.zeros((1, 24), jnp.int32)), options) is None


def test_each_target_has_its_implementation() -> None:
    assert attention_for(Target()) == BlockwiseAttention()
    assert attention_for(Target("gpu")) == StaticAttention()
    assert attention_for(Target("gpu", kernel="paged_cudnn")) == StaticAttention(PagedCudnnKernel())
    assert attention_for(Target("tpu", kernel="splash")) == StaticAttention(SplashKernel())
    assert selection.default_target() == Target("cpu")


class OnDevice:
    """A mesh of one device, which says that it is a GPU of NVIDIA."""

    platform = "gpu"
    platform_version = "cuda 12.9"

    @property
    def client(self) -> "OnDevice":
        return self

    @property
    def devices(self) -> NDArray[Any]:
        return np.array([self])


def test_the_environment_can_forbid_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh: Any = OnDevice()
    monkeypatch.setattr(
        selection, "agrees_with_xla", lambda kernel, width, mesh: kernel == CudnnKernel() and width < 256
    )
    monkeypatch.delenv("BIRDIE_ZMQ_ATTENTION", raising=False)
    assert selection.default_target(mesh).kernel == "cudnn"
    assert selection.default_target(mesh, [128, 512]).kernel == "cudnn"  # heads of 512 are computed in XLA
    assert selection.default_target(mesh, [128, 256]).kernel == "xla"
    monkeypatch.setenv("BIRDIE_ZMQ_ATTENTION", "xla")
    assert selection.default_target(mesh).kernel == "xla"
    monkeypatch.setenv("BIRDIE_ZMQ_ATTENTION", "flash")
    with pytest.raises(UsageError, match="BIRDIE_ZMQ_ATTENTION=flash is not supported; set it to xla"):
        selection.default_target(mesh)


def test_functions_of_jax_are_those_that_are_called() -> None:
    cudnn.is_available.cache_clear()
    assert cudnn.is_available()


def test_another_jax_switches_cudnn_off_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cudnn, "_MODULE", "math")
    cudnn.is_available.cache_clear()
    assert not cudnn.is_available()
    assert "flash attention of cuDNN is off" in caplog.text
    cudnn.is_available.cache_clear()


class WrongKernel(CudnnKernel):
    """Does not see the trees of a row."""

    def own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        return super().own(query, own, AttentionMetadata(metadata.positions), options)


def test_a_kernel_is_used_if_it_computes_what_xla_does(cudnn_in_xla: None, caplog: pytest.LogCaptureFixture) -> None:
    assert agrees_with_xla(PagedCudnnKernel())
    assert not caplog.records


def test_a_wrong_kernel_is_not_used(cudnn_in_xla: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not agrees_with_xla(WrongKernel())
    assert "WrongKernel is off, so attention takes longer: trees with heads of 64 differ by" in caplog.text


class MissingKernel(CudnnKernel):
    """Fails as JAX does where no cuDNN is installed."""

    def own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        raise RuntimeError("cuDNN is not detected.")


def test_a_kernel_that_fails_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not agrees_with_xla(MissingKernel(), 128)
    assert "trees with heads of 128 cannot be computed: cuDNN is not detected." in caplog.text


def test_a_kernel_is_checked_on_the_mesh_that_runs_it(cudnn_in_xla: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = {"trees": kernel_check._CASES["trees"]}
    monkeypatch.setattr(kernel_check, "_CASES", trees)
    mesh = make_mesh(MeshShape(1, 1))
    assert agrees_with_xla(CudnnKernel(), 64, mesh)
    assert not agrees_with_xla(WrongKernel(), 64, mesh)
