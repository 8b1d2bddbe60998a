"""The process group that holds a model, as rank 0 sees it while it loads the model, and what both sides check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.leader import BroadcastingBackend, Leader, check_mesh
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelSpec, RankInfo
from birdie_zmq.worker.engine_registry import Engine
from birdie_zmq.worker.user_module import UserModule


@dataclass(frozen=True)
class ProcessGroup:
    """The process group that holds a model, as rank 0 sees it.

    Attributes:
        leader: Sends to the follower ranks.
        rank: The rank of this process.
        device_count: Returns the number of devices of all ranks; called after the import of the user module, which may
            set it.
        is_runtime_error: Returns whether an error comes from the framework's runtime.
    """

    leader: Leader
    rank: RankInfo
    device_count: Callable[[], int]
    is_runtime_error: Callable[[BaseException], bool]

    def begin_loading(self, model: ModelSpec, user_module: UserModule, mesh: MeshShape | None) -> None:
        """Let the follower ranks load the same model at the same time.

        Raises:
            UsageError: The mesh does not have all devices of the group.
        """
        self.leader.load(
            calls.Load(version=__version__, model=model, user_module=user_module.name, sha256=user_module.sha256)
        )
        check_mesh(mesh, self.device_count(), self.rank)

    def make_backend(self, engine: Engine, model: LoadedModel, max_length: int, mesh: object) -> Backend:
        """Return a backend that every rank makes, and whose calls the follower ranks repeat."""
        self.leader.send_max_length(max_length)
        backend = engine.make_backend(require_params(model), max_length, mesh)
        self.leader.wait_until_loaded(backend)
        return BroadcastingBackend(backend, self.leader, self.is_runtime_error)


def require_params(model: LoadedModel) -> LoadedModel:
    """Return the model unchanged, after checking that a process group can hold it.

    Raises:
        UsageError: It is a bare callable, which cannot take arrays that span processes.
    """
    if not model.jit:
        raise UsageError(
            "load_model returned a bare callable, but this worker is a process group, which must have the params; return "
            "(apply, params) or a birdie_zmq.Model"
        )
    return model
