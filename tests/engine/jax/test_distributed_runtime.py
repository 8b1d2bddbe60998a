"""The private names of JAX that a process group uses; the test fails for a JAX version that lacks one, and names it."""

from __future__ import annotations

import inspect

import jax
import pytest
from jax._src import clusters, distributed
from jax._src.lib import _jax  # type: ignore[attr-defined]

from birdie_zmq.engine.jax import distributed_runtime


@pytest.mark.parametrize("name", distributed_runtime.CLIENT_METHODS)
def test_coordination_service_client_has_method(name: str) -> None:
    assert callable(getattr(_jax.DistributedRuntimeClient, name, None)), f"jax {jax.__version__} has no {name}"


def test_jax_has_the_names_used_to_join() -> None:
    assert hasattr(distributed.global_state, "client")
    given = inspect.signature(clusters.ClusterEnv.auto_detect_unset_distributed_params).parameters
    assert len(given) == 6, f"jax {jax.__version__} finds a coordinator by {list(given)}"
    assert {"cluster_detection_method", "initialization_timeout"} <= set(
        inspect.signature(jax.distributed.initialize).parameters
    )
