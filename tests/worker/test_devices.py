"""The devices of a model process, and the conversion of lm_eval's ``--device``."""

import pytest

from birdie_zmq.errors import UsageError
from birdie_zmq.worker.devices import VISIBLE_DEVICES, GpuHider, device_environment, device_of_lm_eval

CUDA, HIP, ROCR = VISIBLE_DEVICES


@pytest.mark.parametrize("device", [None, "cpu", "0"])
def test_environment_is_copied_and_not_modified(device: str | None) -> None:
    environment = {"XLA_FLAGS": "--xla_dump_to=here", "JAX_ENABLE_X64": "1"}
    result = device_environment(device, environment)
    assert result.items() >= environment.items()
    assert environment == {"XLA_FLAGS": "--xla_dump_to=here", "JAX_ENABLE_X64": "1"}


def test_no_device_leaves_the_environment_unchanged() -> None:
    environment = {CUDA: "3,4", "JAX_PLATFORMS": "cuda"}
    assert device_environment(None, environment) == environment


def test_cpu_selects_the_cpu_in_jax_and_hides_all_gpus() -> None:
    chosen = {"JAX_PLATFORMS": "cpu", CUDA: "", HIP: "", ROCR: ""}
    assert device_environment("cpu", {"JAX_PLATFORMS": "cuda", CUDA: "0"}) == chosen


def test_gpu_number_sets_the_variables_of_both_vendors() -> None:
    assert device_environment("1", {}) == {CUDA: "1", HIP: "1"}


@pytest.mark.parametrize("variable", [CUDA, HIP])
@pytest.mark.parametrize(("device", "shown"), [("0", "4"), ("1", "GPU-7f3a"), ("2", "6")])
def test_gpu_number_indexes_the_visible_gpus(variable: str, device: str, shown: str) -> None:
    assert device_environment(device, {variable: "4, GPU-7f3a,6"})[variable] == shown


def test_gpu_number_indexes_the_gpus_that_amds_runtime_leaves() -> None:
    """HIP numbers them anew, so a number in both variables would name a device that is not there."""
    assert device_environment("1", {ROCR: "4,5"}) == {ROCR: "4,5", CUDA: "1", HIP: "1"}
    assert device_environment("1", {ROCR: "4,5,6", HIP: "0,2"}) == {ROCR: "4,5,6", CUDA: "1", HIP: "2"}
    assert device_environment("1", {CUDA: "2,3"}) == {CUDA: "3", HIP: "3"}


@pytest.mark.parametrize("variable", VISIBLE_DEVICES)
def test_gpu_number_beyond_the_visible_gpus_is_refused(variable: str) -> None:
    with pytest.raises(UsageError, match=f"no device 2: {variable}=4,5 makes only 2 visible"):
        device_environment("2", {variable: "4,5"})


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_stay_hidden(hidden: str) -> None:
    assert device_environment("0", {CUDA: hidden})[CUDA] == hidden


@pytest.mark.parametrize("device", ["", "gpu", "-1", "0,1", "1.0", "cuda:0", "CPU"])
def test_invalid_device_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="neither cpu nor the number of a GPU"):
        device_environment(device, {})


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("cpu", "cpu"),
        ("cuda:0", "0"),
        ("cuda:12", "12"),
        ("cuda", None),
        ("cuda:", None),
        ("cuda:x", None),
        ("mps", None),
        ("mps:0", None),
        ("", None),
        (None, None),
    ],
)
def test_lm_evals_device_is_converted(name: str | None, device: str | None) -> None:
    assert device_of_lm_eval(name) == device


def test_hidden_gpus_are_shown_again_after_the_last_user() -> None:
    environment = {CUDA: "2,3", "PATH": "/bin"}
    gpus = GpuHider(environment)
    gpus.hide()
    gpus.hide()
    assert environment == {CUDA: "", HIP: "", ROCR: "", "PATH": "/bin"}
    assert gpus.original_environment() == {CUDA: "2,3", "PATH": "/bin"}
    gpus.restore()
    assert environment == {CUDA: "", HIP: "", ROCR: "", "PATH": "/bin"}
    gpus.restore()
    assert environment == gpus.original_environment() == {CUDA: "2,3", "PATH": "/bin"}


def test_devices_that_the_program_has_chosen_meanwhile_stay() -> None:
    environment: dict[str, str] = {}
    gpus = GpuHider(environment)
    gpus.hide()
    environment[CUDA] = "1"
    assert gpus.original_environment() == {CUDA: "1"}
    gpus.restore()
    assert environment == {CUDA: "1"}
