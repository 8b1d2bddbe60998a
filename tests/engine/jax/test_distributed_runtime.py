"""What a group asks of JAX that JAX does not promise: a version that lacks it fails here, and says what."""

from __future__ import annotations

import inspect

import jax
import pytest
from jax._src import clusters, distributed
from jax._src.lib import _jax  # type: ignore[attr-defined]

from birdie_zmq.engine.jax import distributed_runtime


@pytest.mark.parametrize("name", distributed_runtime.CLIENT_NAMES)
def test_the_client_of_the_coordination_service_has(name: str) -> None:
    assert callable(getattr(_jax.DistributedRuntimeClient, name, None)), f"jax {jax.__version__} has no {name}"


def test_jax_has_what_joining_asks_for() -> None:
    assert hasattr(distributed.global_state, "client")
    given = inspect.signature(clusters.ClusterEnv.auto_detect_unset_distributed_params).parameters
    assert len(given) == 6, f"jax {jax.__version__} finds a coordinator by {list(given)}"
    assert {"cluster_detection_method", "initialization_timeout"} <= set(
        inspect.signature(jax.distributed.initialize).parameters
    )
