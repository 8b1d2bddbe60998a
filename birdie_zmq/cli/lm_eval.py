"""``birdie-zmq lm_eval``: lm_eval's own command, where Python reads no .pth files."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq lm_eval") -> int:
    """Run lm_eval's own command with the model birdie_zmq registered, where no .pth file could do that."""
    import _birdie_zmq_hook

    del prog  # lm_eval names itself in its help
    from lm_eval.__main__ import cli_evaluate

    _birdie_zmq_hook.install()
    sys.argv = ["lm_eval", *(sys.argv[1:] if arguments is None else arguments)]
    cli_evaluate()
    return 0
