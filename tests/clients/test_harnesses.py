"""lighteval and inspect-ai with ``birdie-zmq serve``, each in an environment of its own; run by tox -e clients.

They need other versions of packages than birdie-zmq. ``BIRDIE_CLIENTS`` names a folder in which the environments stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Programs
from tests.integration.serving import Server

pytestmark = [pytest.mark.clients, pytest.mark.timeout(2400)]

FOLDER = Path(__file__).resolve().parent
PACKAGES = {
    # The client of lighteval 0.13 imports what later versions of LiteLLM do not have, and gives text to xxhash, which 4 refuses.
    "lighteval": ("lighteval==0.13.0", "litellm[caching]<1.75", "diskcache", "xxhash<4"),
    "inspect": ("inspect-ai==0.3.285", "openai"),
}
QUESTIONS = ("The cat sat on the", "hello", "Once upon a time", "What is red?")
MAX_TOKENS = 12


def python_of(name: str, folder: Path) -> Path:
    """Return the Python of a harness's environment, which is made if necessary."""
    python = folder / name / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True, timeout=300)
        subprocess.run([str(python), "-m", "pip", "install", "--no-compile", *PACKAGES[name]], check=True, timeout=1800)
    return python


@pytest.mark.parametrize("name", PACKAGES)
def test_a_harness_gets_the_answers_of_the_server(name: str, programs: Programs, tmp_path: Path) -> None:
    python = python_of(name, Path(os.environ.get("BIRDIE_CLIENTS", tmp_path / "environments")))
    command = ("-m", "birdie_zmq", "serve", "--port", "0", "--model_args", "model_tag=demo", "--device", "cpu")
    server = Server(programs.start(*command))
    with server.http:
        expected = {question: answer(server, question) for question in QUESTIONS}
        (tmp_path / "data").mkdir()
        # The harness is told that the last answer is wrong.
        right = expected | {QUESTIONS[-1]: "neither this"}
        lines = [json.dumps({"question": question, "answer": text}) for question, text in right.items()]
        (tmp_path / "data" / "data.jsonl").write_text("\n".join(lines) + "\n")

        program = [str(python), str(FOLDER / f"ask_{name}.py"), server.url, "no-key", str(tmp_path)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
        )

    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {question: text.strip() for question, text in found["answers"].items()} == expected
    assert found["exact_match"] == 0.75
    assert all(count == 2 for count in found.get("likeliest", []))


def answer(server: Server, question: str) -> Any:
    """Return what the server answers to a question, without the space around it."""
    content = {"messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS, "temperature": 0}
    response = server.http.post("/chat/completions", json=content)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"].strip()
