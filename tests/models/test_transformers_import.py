"""transformers without torch: what is imported in which process, tested in fresh processes.

- In a model process of JAX, torch is not imported where it is installed.
- In lm_eval's process, birdie-zmq imports neither torch nor transformers.
- A user's api.py can import torch, and transformers with its torch models, before and after the built-in models are used.

Where torch is not installed, a package that only records its import takes its place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from birdie_zmq.models.transformers_import import shorten

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "birdie_zmq" / "models" / "demo"

STAND_IN = '''
"""Takes the place of torch: this file alone is imported, and prints that it was."""
print("torch was imported")
__version__ = "2.13.0"
'''

JAX_PROCESS = """
import sys
from birdie_zmq.models import load_model, load_tokenizer

tokenizer = load_tokenizer(CHECKPOINT)
model = load_model(CHECKPOINT)
ids = tokenizer.encode("Una lives in Fernley.")
assert tokenizer.decode(ids) == "Una lives in Fernley."
assert model.logits(model.params, __import__("jax").numpy.asarray([ids])).shape[1] == len(ids)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "transformers"}, sorted(loaded & {"torch", "transformers"})
import importlib.metadata
print("torch", importlib.metadata.version("torch"), "is installed")
"""

LM_EVAL_PROCESS = """
import sys

if __name__ == "__main__":
    from harness_model import BirdieZMQ
    from tests.instances import instance

    with BirdieZMQ(model_tag=CHECKPOINT, device="cpu") as model:
        request = instance("loglikelihood", ("Question: Where does Una live?\\nAnswer:", " Fernley"), 0)
        [(score, greedy)] = model.loglikelihood([request], disable_tqdm=True)
        assert score < 0
        assert model.tokenizer_name
        loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"torch", "transformers"}, sorted(loaded & {"torch", "transformers"})
    print("scored")
"""

LATER_USE = """
import sys
from birdie_zmq.models import load_tokenizer

tokenizer = load_tokenizer(CHECKPOINT)
assert tokenizer.encode("Una <|eos|>")[-1] == tokenizer.eos_token_id
assert tokenizer(["a", "b"])["input_ids"]
ids = tokenizer.encode("Una lives")
assert tokenizer.decode([*ids, 2], skip_special_tokens=True) == tokenizer.decode(ids) == "Una lives"
assert tokenizer.transformers_tokenizer.convert_ids_to_tokens([2]) == [tokenizer.eos_token]
again = load_tokenizer(CHECKPOINT)
assert type(again.transformers_tokenizer) is type(tokenizer.transformers_tokenizer)
assert not [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]
print("used")
"""

OWN_TRANSFORMERS = """
import sys
sys.modules["torch"] = None  # this process has decided to do without
import transformers
from birdie_zmq.models import load_tokenizer

before = transformers.AutoTokenizer
tokenizer = load_tokenizer(CHECKPOINT)
assert tokenizer.encode("Una")
assert sys.modules["transformers"] is transformers
assert transformers.AutoTokenizer is before
assert sys.modules["torch"] is None
print("kept")
"""

FAILING = """
import sys
from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.tokenizer import read_tokenizer
from pathlib import Path

try:
    read_tokenizer(Path(sys.argv[1]))
except TokenizerError:
    assert "torch" not in sys.modules
    assert not any(name.partition(".")[0] == "transformers" for name in sys.modules)
    print("failed")
"""

TORCH_MODEL = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

config = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
model = AutoModelForCausalLM.from_config(config)
assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 8)
"""

BUILT_IN = """
from birdie_zmq.models import load_model, load_tokenizer

tokenizer, built_in = load_tokenizer(CHECKPOINT), load_model(CHECKPOINT)
assert tokenizer.decode(tokenizer.encode("Una lives.")) == "Una lives."
"""


def run(code: str, *arguments: str, path: Path | None = None) -> str:
    """Run a program in a fresh process, and return what it prints.

    Args:
        code: The program.
        *arguments: Its arguments.
        path: A directory to search for packages before all others.
    """
    searched = [str(folder) for folder in (path, ROOT) if folder is not None]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(searched)}
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the demo is a checkpoint like any other, which transformers reads; the demo itself is not.
        checkpoint = shutil.copytree(DEMO, Path(folder) / "checkpoint")
        code = f"CHECKPOINT = {str(checkpoint)!r}\n{code}"
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Make a directory with a package torch, which transformers takes for PyTorch 2.13."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    metadata = tmp_path / "torch-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n", encoding="utf-8")
    return tmp_path


def test_stand_in_would_be_imported_by_transformers(stand_in: Path) -> None:
    code = "try:\n    from transformers import AutoTokenizer\n    AutoTokenizer.from_pretrained\nexcept Exception:\n    pass"
    assert "torch was imported" in run(code, path=stand_in)


def test_model_process_does_not_import_an_installed_torch(stand_in: Path) -> None:
    assert run(JAX_PROCESS, path=stand_in) == "torch 2.13.0 is installed\n"


@pytest.mark.torch
def test_model_process_does_not_import_the_real_torch() -> None:
    assert run(JAX_PROCESS).startswith("torch 2.")


def test_lm_eval_process_imports_neither(stand_in: Path) -> None:
    assert run(LM_EVAL_PROCESS, path=stand_in).endswith("scored\n")


def test_tokenizer_needs_no_further_import_of_transformers_and_torch_can_be_imported_later(stand_in: Path) -> None:
    assert run(LATER_USE + "import torch", path=stand_in) == "used\ntorch was imported\n"


def test_transformers_that_was_imported_before_is_kept() -> None:
    assert run(OWN_TRANSFORMERS) == "kept\n"


def test_nothing_is_left_behind_after_an_error(stand_in: Path, tmp_path: Path) -> None:
    assert run(FAILING, str(tmp_path / "none"), path=stand_in) == "failed\n"


@pytest.mark.torch
@pytest.mark.parametrize(
    "code",
    [TORCH_MODEL + BUILT_IN, BUILT_IN + TORCH_MODEL, BUILT_IN + TORCH_MODEL + BUILT_IN, "import torch\n" + BUILT_IN],
    ids=["before", "after", "between", "torch alone before"],
)
def test_torch_models_of_transformers_work_before_and_after_the_built_in_models(code: str) -> None:
    assert run(code) == ""


@pytest.mark.torch
def test_transformers_without_torch_imported_before_gets_its_torch_models_later() -> None:
    """The user's own import of transformers comes first, but imports torch only when a model is used."""
    assert run("import transformers\n" + BUILT_IN + TORCH_MODEL) == ""


def test_a_long_message_is_cut_to_one_line() -> None:
    assert shorten(" one\n  two ") == "one two"
    assert shorten("x" * 400) == "x" * 400
    assert shorten("x" * 401) == "x" * 400 + " …"
