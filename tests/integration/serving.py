"""A running ``birdie-zmq serve``, and a client of it."""

from __future__ import annotations

from typing import Any

import httpx
import psutil

from tests.integration.conftest import Program, descendants

TEXT = "The cat sat on the mat. The dog ran to the"


class Server:
    """A server, and a client of it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.url = program.wait_for(r"serving demo at (http://\S+)")[1]
        program.wait_for("loaded demo in")
        self.root = self.url.removesuffix("/v1")
        self.http = httpx.Client(base_url=self.url, timeout=240)

    def complete(self, **content: Any) -> Any:
        response = self.http.post("/completions", json=content)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        exposition = self.http.get(self.root + "/metrics").text
        (line,) = (line for line in exposition.splitlines() if line.startswith(f"birdie_zmq_serve_{name} "))
        return float(line.split()[1])

    def model_process(self) -> psutil.Process:
        """Return the newest process: that of the model."""
        return max(descendants(self.program.process.pid), key=lambda process: process.create_time())
