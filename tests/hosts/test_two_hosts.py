"""A broker, a worker and a client on hosts of their own, with keys: scores, encryption, and links that fail."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.settings import AgentSettings, BrokerSettings, ClientSettings
from harness_model import BirdieZMQ
from tests.hosts.network import Host, Link, Network
from tests.integration.conftest import ROOT, Program, Programs, wait_until
from tests.integration.test_faults import TEXTS, requests

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
PORT = 5555
CUT_S = BrokerSettings().worker_timeout_s + 4.0
"""Longer than the broker waits for a silent worker."""
LONGER_CUT_S = AgentSettings().broker_timeout_s + 4.0
"""Longer than the worker waits for a silent broker as well."""
DEADLINE_S = 300.0
PLAINTEXT = "the lantern is not for others"


def start(programs: Programs, host: Host, *command: str, cwd: Path = ROOT) -> Program:
    return programs.start(*command, cwd=cwd, prefix=host.prefix, PYTHONPATH=str(ROOT), **host.environment)


def new_key(programs: Programs, hosts: Network, role: str, owner: Host, name: str) -> Path:
    """Make a key on the broker's host, move its private file to another host, and return its path there."""
    made = hosts.broker.home / f"{name}.key"
    done = start(programs, hosts.broker, "-m", "birdie_zmq", "keys", "new", role, name, "--output", str(made))
    assert done.process.wait(DEADLINE_S) == 0, done.output
    moved = owner.home / made.name
    shutil.move(made, moved)
    return moved


def start_broker(programs: Programs, hosts: Network) -> Program:
    """Start a broker at the address of the worker's link, with the keys in the settings of the broker's user."""
    broker = start(programs, hosts.broker, "broker.py", "--bind", f"tcp://{hosts.to_worker.address}:{PORT}", "--keys")
    broker.wait_for(r"broker at ([^\s,]+)")
    return broker


def start_worker(programs: Programs, hosts: Network, *options: str) -> Program:
    endpoint = f"tcp://{hosts.to_worker.address}:{PORT}"
    return start(programs, hosts.worker, "-m", "workers.jax_worker", "--connect", endpoint, "--device", "cpu", *options)


def capture(programs: Programs, link: Link, file: Path) -> Program:
    program = start(programs, link.near, str(HERE / "capture.py"), link.interface, str(file))
    program.wait_for("capturing")
    return program


def send_plaintext(programs: Programs, link: Link) -> None:
    """Send an unencrypted datagram over a link, which the capture must contain."""
    code = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), (sys.argv[2], 9))"
    sender = start(programs, link.far, "-c", code, PLAINTEXT, link.address)
    assert sender.process.wait(DEADLINE_S) == 0, sender.output


def evaluate(programs: Programs, host: Host | None, folder: Path, model_args: str) -> Program:
    """Start lm_eval on the demo's tasks on a host, or on this machine for None."""
    folder.mkdir()
    program = "import _birdie_zmq_hook, lm_eval.__main__ as main; main.cli_evaluate()"
    tasks = ["--include_path", str(ROOT / "examples" / "tasks"), "--tasks", "demo_choice,demo_rolling,demo_generate"]
    command = ["-c", program, "--model", "birdie_zmq", "--model_args", model_args, *tasks, "--limit", "20"]
    command += ["--device", "cpu", "--output_path", str(folder / "out"), "--log_samples"]
    if host is None:
        return programs.start(*command, cwd=folder, PYTHONPATH=str(ROOT))
    return start(programs, host, *command, cwd=folder)


def responses(run: Program, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the metrics of an lm_eval run, and its samples by task and document."""
    assert run.process.wait(DEADLINE_S) == 0, run.output
    (results,) = (folder / "out").rglob("results_*.json")
    samples = []
    for file in sorted((folder / "out").rglob("samples_*.jsonl"), key=lambda file: file.name.rpartition("_")[0]):
        samples += [json.loads(line) for line in file.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


@pytest.fixture(scope="session")
def expected(model_files: Path) -> list[float]:
    """The scores of the texts on this machine, without any link."""
    settings = ClientSettings(batch_items=8, connect_s=60)
    api = str(model_files / "faulty.py")
    with BirdieZMQ(model_tag="steady", api=api, device="cpu", batch_rows=4, client_settings=settings) as lm:
        return lm.loglikelihood_rolling(requests(TEXTS), disable_tqdm=True)


def start_scoring(
    programs: Programs, hosts: Network, key: Path, pause_s: float, texts: Sequence[str], broker: str | None = None
) -> Program:
    endpoint = f"tcp://{broker or hosts.to_worker.address}:{PORT}"
    return start(
        programs, hosts.client, str(HERE / "scorer.py"), endpoint, str(key), str(pause_s), json.dumps(list(texts))
    )


def scores(run: Program) -> Any:
    assert run.process.wait(DEADLINE_S) == 0, run.output
    return json.loads(run.wait_for(r"scores (\[.*\])")[1])


def test_run_over_three_hosts_scores_the_same_and_is_encrypted(
    programs: Programs, hosts: Network, tmp_path: Path
) -> None:
    worker_key = new_key(programs, hosts, "worker", hosts.worker, "gpu1")
    client_key = new_key(programs, hosts, "client", hosts.client, "alice")
    broker = start_broker(programs, hosts)
    files = [tmp_path / "worker.frames", tmp_path / "client.frames"]
    captures = [
        capture(programs, link, file) for link, file in zip((hosts.to_worker, hosts.to_client), files, strict=True)
    ]
    for link in (hosts.to_worker, hosts.to_client):
        send_plaintext(programs, link)
    worker = start_worker(programs, hosts, "--built-in", "--key-file", str(worker_key))
    worker.wait_for("registered with the broker")

    endpoint = f"tcp://{hosts.to_worker.address}:{PORT}"
    remote_run = evaluate(
        programs, hosts.client, tmp_path / "remote", f"model_tag=demo,endpoint={endpoint},key_file={client_key}"
    )
    metrics, samples = responses(remote_run, tmp_path / "remote")
    local_run = evaluate(programs, None, tmp_path / "local", "model_tag=demo")
    expected_metrics, expected_samples = responses(local_run, tmp_path / "local")
    assert [sample["resps"] for sample in samples] == [sample["resps"] for sample in expected_samples]
    assert metrics == expected_metrics
    assert len(samples) == 60

    for program in captures:
        program.stop()
    texts = [sample["arguments"]["gen_args_0"]["arg_0"].encode() for sample in samples]
    answers = [sample["resps"][0][0].encode() for sample in samples if isinstance(sample["resps"][0][0], str)]
    for file in files:
        captured = file.read_bytes()
        assert PLAINTEXT.encode() in captured
        assert len(captured) > 20_000
        fragments = [text[at : at + 24] for text in texts for at in range(0, len(text) - 24, 24)]
        assert len(fragments) > 100
        assert not [fragment for fragment in fragments if fragment in captured]
        assert not [answer for answer in answers if len(answer) > 8 and answer in captured]
        assert b"loglikelihood" not in captured
    assert worker.stop() == 0
    assert broker.stop() == 0


def test_peer_without_a_valid_key_is_refused_on_another_host_with_the_reason(
    programs: Programs, hosts: Network
) -> None:
    client_key = new_key(programs, hosts, "client", hosts.client, "alice")
    broker = start_broker(programs, hosts)
    worker = start_worker(programs, hosts, "--built-in")
    assert worker.process.wait(DEADLINE_S) == 2
    assert f"the broker at tcp://{hosts.to_worker.address}:{PORT} requires a key" in worker.output

    # A client's key, although known to the broker, does not authorise a worker.
    shutil.copy(client_key, hosts.worker.home / "client.key")
    worker = start_worker(programs, hosts, "--built-in", "--key-file", str(hosts.worker.home / "client.key"))
    assert worker.process.wait(DEADLINE_S) == 2
    assert "the key of client 'alice' may not send RegisterWorker" in worker.output
    assert broker.stop() == 0


@pytest.mark.parametrize(("which", "cut_s"), [("worker", CUT_S), ("worker", LONGER_CUT_S), ("client", CUT_S)])
def test_run_continues_after_a_link_is_restored(
    programs: Programs, hosts: Network, model_files: Path, expected: list[float], which: str, cut_s: float
) -> None:
    worker_key = new_key(programs, hosts, "worker", hosts.worker, "gpu1")
    client_key = new_key(programs, hosts, "client", hosts.client, "alice")
    broker = start_broker(programs, hosts)
    worker = start_worker(programs, hosts, "--api", str(model_files / "faulty.py"), "--key-file", str(worker_key))
    worker.wait_for("registered with the broker")
    run = start_scoring(programs, hosts, client_key, 0.5, TEXTS)
    wait_until(lambda: run.output.count("answer") >= 8, "8 answers")
    link = hosts.to_worker if which == "worker" else hosts.to_client
    link.cut()
    time.sleep(cut_s)
    answered = run.output.count("answer")
    assert answered < len(TEXTS)
    link.restore()

    assert scores(run) == expected
    assert run.output.count("answer\n") == len(TEXTS)
    if which == "worker":
        assert "disconnected: it was silent for more than" in broker.output
        assert worker.output.count("registered with the broker") == 2
    assert worker.stop() == 0
    assert broker.stop() == 0


def test_no_answer_is_lost_over_a_link_that_delays_and_drops_packets(
    programs: Programs, hosts: Network, model_files: Path, expected: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    worker_key = new_key(programs, hosts, "worker", hosts.worker, "gpu1")
    client_key = new_key(programs, hosts, "client", hosts.client, "alice")
    broker = start_broker(programs, hosts)
    settings = {hosts.to_worker.degrade(), hosts.to_client.degrade()}
    worker = start_worker(programs, hosts, "--api", str(model_files / "faulty.py"), "--key-file", str(worker_key))
    worker.wait_for("registered with the broker")
    run = start_scoring(programs, hosts, client_key, 0.0, [f"{text} {'again ' * 100}" for text in TEXTS * 4])
    scored = scores(run)
    assert len(scored) == 4 * len(TEXTS)
    assert scored[: len(TEXTS)] * 4 == scored
    assert run.output.count("answer\n") == len(scored)
    dropped = [link.dropped() for link in (hosts.to_worker, hosts.to_client)]
    assert sum(dropped) > 0, settings
    with capsys.disabled():
        sys.stderr.write(f"\n{'; '.join(settings)}: packets dropped {dropped}\n")
    assert worker.stop() == 0
    assert broker.stop() == 0


def test_broker_is_found_by_a_name_whose_first_addresses_do_not_answer(
    programs: Programs, hosts: Network, model_files: Path, expected: list[float]
) -> None:
    """The first address has no route, the second no host behind it; then the broker moves to the fourth."""
    addresses = ["fd00:77::9", "10.77.1.9", hosts.to_worker.address, hosts.to_client.address]
    worker_key = new_key(programs, hosts, "worker", hosts.worker, "gpu1")
    client_key = new_key(programs, hosts, "client", hosts.client, "alice")
    with hosts.client.names({"broker-host": addresses}), hosts.worker.names({"broker-host": addresses}):
        options = ["--api", str(model_files / "faulty.py"), "--key-file", str(worker_key)]
        command = ["-m", "workers.jax_worker", "--connect", f"tcp://broker-host:{PORT}", "--device", "cpu", *options]
        worker = start(programs, hosts.worker, *command)
        broker = start_broker(programs, hosts)
        worker.wait_for("registered with the broker")
        run = start_scoring(programs, hosts, client_key, 0.5, TEXTS, "broker-host")
        wait_until(lambda: run.output.count("answer") >= 8, "8 answers")
        assert broker.stop() == 0
        moved = f"tcp://{hosts.to_client.address}:{PORT}"
        broker = start(programs, hosts.broker, "broker.py", "--bind", moved, "--keys")
        broker.wait_for(r"broker at ([^\s,]+)")
        assert scores(run) == expected
        assert run.output.count("answer\n") == len(TEXTS)
        assert worker.stop() == 0
        assert broker.stop() == 0
