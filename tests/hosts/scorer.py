"""A client process that scores texts: ``python tests/hosts/scorer.py ENDPOINT KEY_FILE PAUSE_S TEXTS``.

Scores the JSON list of texts with the user module ``faulty.py``, prints ``answer`` at each answer, and the scores at the end.
"""

import json
import sys

from lm_eval.api.model import CacheHook

from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.instances import instance


def print_line(line: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class AnswerHook(CacheHook):
    """A cache hook that prints a line for each answer."""

    def __init__(self) -> None:
        super().__init__(None)

    def add_partial(self, attr: str, req: object, res: object) -> None:
        print_line("answer")


def main(endpoint: str, key_file: str, pause_s: str, texts: str) -> None:
    """Score the texts and print the scores."""
    requests = [instance("loglikelihood_rolling", (text,), i) for i, text in enumerate(json.loads(texts))]
    settings = ClientSettings(batch_items=8, connect_s=60)
    with BirdieZMQ(
        model_tag="steady",
        endpoint=endpoint,
        key_file=key_file,
        batch_rows=4,
        client_settings=settings,
        pause_s=float(pause_s),
    ) as lm:
        lm.set_cache_hook(AnswerHook())
        print_line(f"scores {json.dumps(lm.loglikelihood_rolling(requests, disable_tqdm=True))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
