"""PyTorch models through the broker, the worker and the model server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from birdie_zmq.errors import BirdieError, ModelCallError, ModelLoadError, UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration import test_idle_time as idle_time
from tests.integration.conftest import ROOT, Programs
from tests.model_files import torch_model
from tests.parity.checkpoints import make_checkpoint
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

QUESTION = "Question: Where does Una live?\nAnswer:"
PAIRS = [
    (QUESTION, " Fernley"),
    (QUESTION, " Oldbrook"),
    (QUESTION, " Oldbrook and Fernley"),
    ("", "Una lives in Fernley."),
    ("Mira has", " 12 plums."),
]
PROMPTS = [QUESTION, "Mira has", "Una lives in"]
GREEDY = {"until": [], "max_gen_toks": 12}
SAMPLED = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_gen_toks": 12}


def make_requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [instance(kind, argument, number) for number, argument in enumerate(arguments)]


def open_model(model_files: Path, tag: str = "module", **keywords: Any) -> BirdieZMQ:
    return BirdieZMQ(model_tag=tag, api=str(model_files / "torch_model.py"), engine="torch", device="cpu", **keywords)


def score(lm: BirdieZMQ, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(make_requests("loglikelihood", pairs), disable_tqdm=True)


def generate(lm: BirdieZMQ, prompts: list[str], settings: dict[str, Any]) -> list[str]:
    return lm.generate_until(
        make_requests("generate_until", [(prompt, settings) for prompt in prompts]), disable_tqdm=True
    )


def direct_scores(directory: Path) -> list[float]:
    """The scores by transformers itself, one request at a time."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found = []
    for context, continuation in PAIRS:
        start = tokenizer.encode(context, add_special_tokens=False).ids or [1]
        whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
        tokens = whole if context else start + whole
        with torch.inference_mode():
            at = model(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(dim=-1)
        count = len(tokens) - len(start)
        targets = torch.tensor(tokens[-count:])
        found.append(float(at[-count:].gather(1, targets[:, None]).sum()))
    return found


def test_torch_jax_and_transformers_agree_on_a_checkpoint(checkpoint: Path) -> None:
    answers, infos = {}, {}
    for engine in ("torch", "jax"):
        with BirdieZMQ(pretrained=str(checkpoint), engine=engine, dtype="float32", device="cpu") as lm:
            texts = make_requests("loglikelihood_rolling", [(QUESTION * 12,), ("",)])
            answers[engine] = (
                score(lm, PAIRS),
                lm.loglikelihood_rolling(texts, disable_tqdm=True),
                generate(lm, PROMPTS, GREEDY),
                generate(lm, PROMPTS * 2, SAMPLED),
            )
            infos[engine] = lm.get_model_info()

    np.testing.assert_allclose([s for s, _ in answers["torch"][0]], direct_scores(checkpoint), atol=1e-4)
    np.testing.assert_allclose([s for s, _ in answers["torch"][0]], [s for s, _ in answers["jax"][0]], atol=1e-4)
    assert [greedy for _, greedy in answers["torch"][0]] == [greedy for _, greedy in answers["jax"][0]]
    np.testing.assert_allclose(answers["torch"][1], answers["jax"][1], atol=5e-4)  # each is the sum over five windows
    assert answers["torch"][2] == answers["jax"][2]
    assert len(set(answers["torch"][2])) == 3
    assert answers["torch"][3] == answers["jax"][3]  # the same keys and random numbers
    assert len(set(answers["torch"][3])) == 6
    assert infos["torch"]["model_identity"] != infos["jax"]["model_identity"]
    for name in ("model_num_parameters", "model_dtype", "model_max_length", "model_vocab_size"):
        assert infos["torch"][name] == infos["jax"][name]
    assert infos["torch"]["model_engine"] == "torch"
    assert infos["torch"]["model_versions"].keys() >= {"torch", "transformers"}
    assert infos["torch"]["model_devices"][0].startswith("cpu:")


@pytest.mark.parametrize("tag", ["module", "method", "callable", "pair", "parts", "object", "hungry"])
def test_every_form_of_a_model_answers_like_a_direct_computation(
    model_files: Path, tag: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = torch_model.module_of(3).eval()
    context, continuation = b"the cat sat on", b" the mat"
    row = torch.tensor([list(context + continuation)])
    with torch.inference_mode():
        at = module(row[:, :-1])[0, -len(continuation) :].double().log_softmax(dim=-1)
        text = bytearray(context)
        for _ in range(5):
            text.append(int(module(torch.tensor([list(text)]))[0, -1].argmax()))
    expected = float(at.gather(1, row[0, -len(continuation) :, None]).sum())
    others = [("the cat" * (n % 9), f"number {n}") for n in range(70)]

    with open_model(model_files, tag, seed=3) as lm:
        scores = score(lm, [(context.decode(), continuation.decode()), *others])
        (answer,) = generate(lm, [context.decode()], {"until": [], "max_gen_toks": 5})

    assert scores[0][0] == pytest.approx(expected, abs=1e-4)
    assert answer == text[len(context) :].decode("latin-1")
    assert ("out of memory" in caplog.text) == (tag == "hungry")


def test_sampled_texts_depend_only_on_seed_and_repeat(model_files: Path) -> None:
    def run(prompts: list[str], **keywords: Any) -> list[str]:
        with open_model(model_files, **keywords) as lm:
            return generate(lm, prompts, SAMPLED)

    first = run(PROMPTS * 2)
    assert run(PROMPTS * 2, batch_rows=1) == first
    assert run(PROMPTS[:1] * 2) == [first[0], first[3]]
    assert first[0] != first[3]


def test_a_torch_worker_switches_models_with_new_processes(programs: Programs, model_files: Path) -> None:
    _, endpoint = programs.broker()
    worker = programs.worker(endpoint, model_files / "torch_model.py", command_module="workers.torch_worker")
    assert "engine torch" in worker.output
    processes, scores = [], []
    for tag in ("module", "parts", "module"):
        with BirdieZMQ(model_tag=tag, endpoint=endpoint) as lm:
            scores.append(score(lm, PAIRS[:1])[0][0])
            processes.append(lm._description.process_id)
    assert len(set(processes)) == 3
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


# --- Imports ------------------------------------------------------------------------------------------------


def modules_of(written: Path) -> set[str]:
    return set(json.loads(written.read_text()))


def test_a_jax_model_server_does_not_import_torch(model_files: Path, tmp_path: Path) -> None:
    written = tmp_path / "modules.json"
    with BirdieZMQ(model_tag="any", api=str(model_files / "demo_present.py"), written=str(written), device="cpu") as lm:
        assert score(lm, PAIRS[:1])[0][0] < 0
        generate(lm, PROMPTS[:1], GREEDY)
    assert "jax" in modules_of(written)
    assert modules_of(written).isdisjoint({"torch", "transformers"})


def test_a_torch_model_server_does_not_import_jax(model_files: Path, tmp_path: Path) -> None:
    written = tmp_path / "modules.json"
    with open_model(model_files, "modules", written=str(written)) as lm:
        assert score(lm, PAIRS[:1])[0][0] < 0
    assert "torch" in modules_of(written)
    assert "jax" not in modules_of(written)


# --- Rejected models -------------------------------------------------------------------------------------------------


def test_a_torch_module_is_rejected_by_the_engine_jax(model_files: Path) -> None:
    for tag, error in (("module", ModelLoadError), ("method", ModelLoadError), ("callable", ModelCallError)):
        with pytest.raises(error, match=r"(?s)engine .*is jax.*set engine=torch"):
            BirdieZMQ(model_tag=tag, api=str(model_files / "torch_model.py"), device="cpu")


def test_a_jax_model_is_rejected_by_the_engine_torch(model_files: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"a JAX model .* is torch; set engine=jax"):
        open_model(model_files, "jax")


def test_models_for_jax_only_are_rejected_by_the_engine_torch(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    for tag in ("demo", str(file)):
        with pytest.raises(UsageError, match=r"needs the engine jax.* set engine=jax"):
            BirdieZMQ(model_tag=tag, tokenizer="demo", engine="torch", device="cpu")


def test_a_checkpoint_with_missing_weights_is_rejected_by_their_names(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "lacking"
    shutil.copytree(checkpoint, directory)
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if "layers.2.mlp.up" in name)
    del weights[name]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"lacks weights.*{re.escape(name)}"):
        BirdieZMQ(model_tag=str(directory), engine="torch", device="cpu")


def test_pickled_weights_are_not_loaded(checkpoint: Path, tmp_path: Path) -> None:
    from birdie_zmq.models.transformers_model import load_checkpoint

    directory = tmp_path / "pickled"
    shutil.copytree(checkpoint, directory)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"transformers cannot load .*safetensors"):
        load_checkpoint(directory)


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    from birdie_zmq.models.transformers_model import load_checkpoint

    directory = tmp_path / "with_code"
    shutil.copytree(checkpoint, directory)
    written = tmp_path / "was_run"
    code = f"import pathlib\npathlib.Path({str(written)!r}).touch()\nfrom transformers import LlamaForCausalLM, LlamaConfig\n"
    (directory / "own.py").write_text(code)
    named = {"AutoConfig": "own.LlamaConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"}
    config = json.loads((checkpoint / "config.json").read_text()) | {"auto_map": named}
    (directory / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(directory).params.config.model_type == "llama"  # loaded by transformers' own code
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(ModelLoadError, match="transformers cannot load"):
        load_checkpoint(directory)
    assert not written.exists()


def test_an_unknown_architecture_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "none_such"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(BirdieError, match=r"transformers cannot load .*none_such"):
        BirdieZMQ(model_tag=str(directory), engine="torch", device="cpu")


# --- The head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "head"),
    [("llama", "unembed"), ("gpt2", "unembed"), ("gpt_neox", "unembed"), ("gemma2", "unembed_by_model")],
)
def test_the_head_is_a_matrix_or_else_the_models_own_code(tmp_path: Path, variant: str, head: str) -> None:
    from birdie_zmq.models import transformers_functions
    from birdie_zmq.models.transformers_model import load_checkpoint

    model = load_checkpoint(make_checkpoint(VARIANTS[variant], tmp_path))

    assert model.unembed is getattr(transformers_functions, head)
    assert model.logits is None
    assert model.max_length == 128


@pytest.mark.parametrize(
    ("named", "stored", "requested_dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16, "auto", torch.bfloat16),
        ("float16", torch.float16, "auto", torch.float32),
        (None, torch.bfloat16, "auto", torch.bfloat16),
        (None, torch.float32, "auto", torch.float32),
        ("bfloat16", torch.bfloat16, "float32", torch.float32),
        ("float32", torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_the_dtype_is_the_requested_one_or_else_the_checkpoints(
    checkpoint: Path, tmp_path: Path, named: str | None, stored: Any, requested_dtype: str, expected: Any
) -> None:
    from birdie_zmq.models.transformers_model import load_checkpoint

    directory = tmp_path / "typed"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = named
    (directory / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None or k != "dtype"})
    )
    weights = {name: weight.to(stored) for name, weight in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    assert {p.dtype for p in load_checkpoint(directory, requested_dtype).params.parameters()} == {expected}


def test_the_root_api_py_serves_both_engines(checkpoint: Path) -> None:
    scores = []
    for engine in ("torch", "jax"):
        with BirdieZMQ(
            model_tag=str(checkpoint), api=str(ROOT / "api.py"), engine=engine, dtype="float32", device="cpu"
        ) as lm:
            scores.append(score(lm, PAIRS)[0][0])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_wall_time_is_computing_and_idling(model_files: Path) -> None:
    api = str(model_files / "slow_tokenizer.py")
    with BirdieZMQ(model_tag="slow", api=api, engine="torch", device="cpu") as lm:
        for call in (idle_time.score, idle_time.generate):
            idle_time.check_wall_time(lm, call, 0)
