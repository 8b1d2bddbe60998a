"""Generates docs/reference/options.md from the argument parsers, the arguments of model_args and the variables.

``python -m docs.generate.options_page`` writes the page; a test compares it with the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from birdie_zmq.cli import bench, broker, compare, demo, doctor, keys, main, ray, serve, status, watch, worker
from birdie_zmq.engine.compile_cache_dir import COMPILE_CACHE_VARIABLE
from birdie_zmq.harness.model_args import MODEL_ARGS
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.settings import ATTENTION_VARIABLE, ENGINE_VARIABLE
from birdie_zmq.tools.doctor.hook import DISABLE_VARIABLE
from birdie_zmq.types import REQUEST_ARGUMENTS
from birdie_zmq.worker.devices import VISIBLE_DEVICES

PAGE = Path(__file__).resolve().parent.parent / "reference" / "options.md"

COMMANDS: tuple[tuple[str, argparse.ArgumentParser], ...] = (
    ("`python broker.py`, or `birdie-zmq broker`", broker.parser("broker.py")),
    ("`python -m workers.jax_worker`, or `birdie-zmq worker`", worker.parser("workers.jax_worker")),
    ("`birdie-zmq serve`", serve.parser("birdie-zmq serve")),
    ("`birdie-zmq demo`", demo.parser("birdie-zmq demo")),
    ("`birdie-zmq status`", status.parser("birdie-zmq status")),
    ("`birdie-zmq keys`", keys.parser("birdie-zmq keys")),
    ("`birdie-zmq doctor`", doctor.parser("birdie-zmq doctor")),
    ("`birdie-zmq compare`", compare.parser("birdie-zmq compare")),
    ("`birdie-zmq bench`", bench.parser("birdie-zmq bench")),
    ("`birdie-zmq watch`", watch.parser("birdie-zmq watch")),
    ("`birdie-zmq ray`", ray.parser("birdie-zmq ray")),
    ("`birdie-zmq`", main.parser()),
)

NOTES = {
    "`python -m workers.jax_worker`, or `birdie-zmq worker`": (
        "`python -m workers.torch_worker` has the same options; its default of `--engine` is `torch`."
    ),
    "`birdie-zmq watch`": "All other options are those of `lm_eval run`, with the same meaning.",
    "`birdie-zmq`": (
        "`birdie-zmq lm_eval …`, or `python -m birdie_zmq lm_eval …`, is lm_eval's own command with its own options, for\n"
        "environments in which Python reads no `.pth` files."
    ),
}

VARIABLES: tuple[tuple[str, str], ...] = (
    (DISABLE_VARIABLE, "any value disables the hook that registers birdie-zmq with lm_eval"),
    (
        ENGINE_VARIABLE,
        "set by the model process: `jax`, `torch`, or the path of an engine; your `api.py` may read it",
    ),
    (
        ATTENTION_VARIABLE,
        "`xla`: built-in models compute without the kernels of cuDNN (NVIDIA GPUs), Pallas (TPUs) or Numba (CPUs)",
    ),
    ("BIRDIE_ZMQ_API_KEY", "the key that requests to `birdie-zmq serve` must have, in place of `--api-key-file`"),
    (
        COMPILE_CACHE_VARIABLE,
        "of JAX: folder of the persistent compilation cache; default: `~/.cache/birdie_zmq/programs`",
    ),
    ("JAX_ENABLE_COMPILATION_CACHE", "of JAX: `false` disables the persistent compilation cache"),
    (
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "of JAX: minimum compile time in seconds of a cached executable; default here: 0.1",
    ),
    ("JAX_PLATFORMS, XLA_PYTHON_CLIENT_…", "of JAX; a worker passes them on to its model process"),
    (
        "XLA_FLAGS",
        "of XLA, passed on as well; `--xla_gpu_enable_triton_gemm=true` undoes the GPU setting described in measurements.md",
    ),
    (", ".join(VISIBLE_DEVICES), "the GPUs that a worker may use; `--device N` is an index into them"),
    ("XDG_CACHE_HOME", "if set, it replaces `~/.cache` above, and for the remembered hashes of checkpoint files"),
    ("XDG_CONFIG_HOME", "if set, it replaces `~/.config` in the default key folder"),
    ("TMPDIR", "the folder in which the embedded broker creates its socket"),
)

_HEAD = """\
# Options

This page is generated from the code by `python -m docs.generate.options_page`; a test fails if it is out of date. `--help`
of each command prints the same texts.
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join([_HEAD, *_commands(), *_model_args(), *_lm_eval(), *_variables()])


def _commands() -> Iterator[str]:
    for title, parser in COMMANDS:
        yield f"## {title}\n"
        yield f"{parser.description}\n"
        if title in NOTES:
            yield f"{NOTES[title]}\n"
        yield from _parser(parser)


def _parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    below: list[argparse.ArgumentParser] = []
    rows: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below.extend(action.choices.values())
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            rows += [f"| `{name}` | {helps[name]} |" for name in action.choices]
        elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            rows.append(f"| {_names(parser, action)} | {_description(parser, action)} |")
    if rows:
        yield "| option | meaning |\n| --- | --- |"
        yield from rows
        yield ""
    for each in below:
        yield f"### `{each.prog}`\n"
        yield from _parser(each)


def _names(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    shown = action.option_strings or [action.metavar if isinstance(action.metavar, str) else action.dest]
    if action.option_strings and action.nargs != 0:
        shown = [f"{name} {value}" for name in shown]
    return ", ".join(f"`{name}`".replace("|", "\\|") for name in shown)


def _description(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    # Values that depend on the machine are replaced.
    replacements = {"memory_limit": "in MiB", "keys": _folder(), "folder": _folder()}
    values = dict(vars(action), prog=parser.prog)
    if action.dest in replacements:
        values.update({name: replacements[action.dest] for name in ("default", "const") if values[name] is not None})
    text = (action.help or "") % values
    if action.choices is not None and not action.option_strings:
        listed = ", ".join(f"`{choice}`" for choice in action.choices)
        text = f"{listed}; {text}" if text else listed
    return text.replace("|", "\\|")


def _folder() -> str:
    folder = default_folder()
    assert folder is not None
    return "~/.config/" + "/".join(folder.parts[-2:])


def _model_args() -> Iterator[str]:
    yield "## Arguments of `--model_args`\n"
    yield (
        "All other arguments are forwarded to `load_model` and `load_tokenizer`, and are part of the model's identity. Those of\n"
        "the built-in `api.py` are described in [model_args.md](model_args.md).\n\n"
        f"{', '.join(f'`{name}=`' for name in sorted(REQUEST_ARGUMENTS))} concern requests only: for another\n"
        "value of them, a worker with the built-in models does not load a model again, nor does your `api.py` if it says so\n"
        "([your_model.md](../how_to/your_model.md#arguments-that-do-not-reload-the-model)).\n"
    )
    yield "| argument | forwarded to your functions | meaning |\n| --- | --- | --- |"
    for arg in MODEL_ARGS:
        yield f"| `{arg.name}=` | {'yes' if arg.forwarded else 'no'} | {arg.help} |"
    yield ""


def _lm_eval() -> Iterator[str]:
    yield "## Options of lm_eval that birdie-zmq uses\n"
    yield "| option | meaning |\n| --- | --- |"
    yield (
        "| `--batch_size` | a number above 1 is the maximum number of rows per step; 1 (lm_eval's default) and `auto` leave it "
        "to the engine |"
    )
    yield "| `--max_batch_size` | maximum number of rows per step |"
    yield (
        "| `--device` | `cpu` or `cuda:N`: device of the embedded worker; a machine without that GPU uses the default "
        "device of JAX |"
    )
    yield "\nThe other options are described in [features.md](features.md).\n"


def _variables() -> Iterator[str]:
    yield "## Environment variables\n"
    yield "| variable | meaning |\n| --- | --- |"
    for names, text in VARIABLES:
        yield f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {text} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
