"""The command ``birdie-zmq lm_eval``: lm_eval's own command, for environments where Python reads no .pth files."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq lm_eval") -> int:
    """Register the model birdie_zmq and run lm_eval's own command; needed if Python does not read our .pth file."""
    import _birdie_zmq_hook

    del prog  # lm_eval sets its own name in its help.
    from lm_eval.__main__ import cli_evaluate

    _birdie_zmq_hook.install()
    sys.argv = ["lm_eval", *(sys.argv[1:] if arguments is None else arguments)]
    cli_evaluate()
    return 0
