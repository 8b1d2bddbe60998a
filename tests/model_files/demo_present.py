"""A page for tests that writes down what its process has imported, when its model has been called."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

letters: Any = importlib.import_module("letters")  # which lies beside this page


def load_model(model_tag: str, written: str, **kwargs: Any) -> Any:
    logits = letters.load_model("callable", **kwargs)

    def noted(tokens: Any) -> Any:
        Path(written).write_text(json.dumps(sorted(sys.modules)))
        return logits(tokens)

    return noted


load_tokenizer = letters.load_tokenizer
