"""Makes docs/reference/options.md from the parsers, from the words of model_args, and from the names of variables.

``python -m docs.generate.options_page`` writes the page; a test compares it with the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from birdie_zmq.cli import bench, broker, compare, demo, doctor, keys, main, ray, status, worker
from birdie_zmq.engine.compile_cache_dir import FOLDER_VARIABLE
from birdie_zmq.engine.distributed.process_group import PAGE_VARIABLE
from birdie_zmq.engine.distributed.process_group import VARIABLE as GROUP_VARIABLE
from birdie_zmq.harness.model_args import MODEL_ARGS
from birdie_zmq.models import checkpoint_policy
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.tools.doctor.hook import SWITCH
from birdie_zmq.worker.devices import VISIBLE_DEVICES

PAGE = Path(__file__).resolve().parent.parent / "reference" / "options.md"

COMMANDS: tuple[tuple[str, argparse.ArgumentParser], ...] = (
    ("`python broker.py`, or `birdie-zmq broker`", broker.parser("broker.py")),
    ("`python -m workers.jax_worker`, or `birdie-zmq worker`", worker.parser("workers.jax_worker")),
    ("`birdie-zmq demo`", demo.parser("birdie-zmq demo")),
    ("`birdie-zmq status`", status.parser("birdie-zmq status")),
    ("`birdie-zmq keys`", keys.parser("birdie-zmq keys")),
    ("`birdie-zmq doctor`", doctor.parser("birdie-zmq doctor")),
    ("`birdie-zmq compare`", compare.parser("birdie-zmq compare")),
    ("`birdie-zmq bench`", bench.parser("birdie-zmq bench")),
    ("`birdie-zmq ray`", ray.full_parser("birdie-zmq ray")),
    ("`birdie-zmq`", main.parser()),
)

NOTES = {
    "`python -m workers.jax_worker`, or `birdie-zmq worker`": (
        "`python -m workers.torch_worker` takes the same; its default for `--engine` is `torch`."
    ),
    "`birdie-zmq`": (
        "`birdie-zmq lm_eval …`, or `python -m birdie_zmq lm_eval …`, is lm_eval's own command with its own options, for\n"
        "places where Python reads no `.pth` files."
    ),
}

VARIABLES: tuple[tuple[str, str], ...] = (
    (SWITCH, "set to anything, it keeps birdie-zmq out of lm_eval altogether"),
    (
        ENGINE_VARIABLE,
        "set by a worker for its model process: `jax`, `torch`, or the path of an engine; a page may read it",
    ),
    (
        checkpoint_policy.VARIABLE,
        "set by a worker for its model process: what `--checkpoints` and `--hub` allow; nothing to set by hand",
    ),
    (
        GROUP_VARIABLE,
        "set by a worker that spans several hosts for its model process: its place; nothing to set by hand",
    ),
    (PAGE_VARIABLE, "the same: its page"),
    (FOLDER_VARIABLE, "JAX's own: another folder for compiled programs than `~/.cache/birdie_zmq/programs`"),
    ("JAX_ENABLE_COMPILATION_CACHE", "JAX's own: `false` keeps no programs"),
    (
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX's own: programs that took less to compile are not kept; left out, 0.1 here",
    ),
    ("JAX_PLATFORMS, XLA_PYTHON_CLIENT_…", "JAX's own; those of the worker reach its model process"),
    (
        "XLA_FLAGS",
        "XLA's own, likewise; `--xla_gpu_enable_triton_gemm=true` undoes what is said of GPUs in measurements.md",
    ),
    (", ".join(VISIBLE_DEVICES), "the GPUs that a worker may use; `--device N` counts among them"),
    ("XDG_CACHE_HOME", "where there is one, it stands for `~/.cache` above"),
    ("XDG_CONFIG_HOME", "where there is one, it stands for `~/.config` in the default folder of keys"),
    ("TMPDIR", "the folder in which a run's own broker has its socket"),
)

_HEAD = """\
# Options

This page is made from the code by `python -m docs.generate.options_page`; a test fails where it is out of date. `--help` of
each command says the same.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_commands(), *_words(), *_lm_eval(), *_variables()])


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
            rows.append(f"| {_names(parser, action)} | {_meaning(parser, action)} |")
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


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    # What depends on the machine on which the page is made stands for itself.
    machine = {"memory_limit": "in MiB", "keys": _folder(), "folder": _folder()}
    values = dict(vars(action), prog=parser.prog)
    if action.dest in machine:
        values.update({name: machine[action.dest] for name in ("default", "const") if values[name] is not None})
    text = (action.help or "") % values
    if action.choices is not None and not action.option_strings:
        listed = ", ".join(f"`{choice}`" for choice in action.choices)
        text = f"{listed}; {text}" if text else listed
    return text.replace("|", "\\|")


def _folder() -> str:
    return "~/.config/" + "/".join(default_folder().parts[-2:])


def _words() -> Iterator[str]:
    yield "## Words of `--model_args`\n"
    yield (
        "Every other word reaches `load_model` and `load_tokenizer`, and is part of what model this is. What the built-in\n"
        "page makes of those is in [model_args.md](model_args.md).\n"
    )
    yield "| word | reaches your functions too | meaning |\n| --- | --- | --- |"
    for word in MODEL_ARGS:
        yield f"| `{word.name}=` | {'yes' if word.passed_on else 'no'} | {word.meaning} |"
    yield ""


def _lm_eval() -> Iterator[str]:
    yield "## lm_eval's own options that mean something here\n"
    yield "| option | meaning |\n| --- | --- |"
    yield (
        "| `--batch_size` | a number above 1 is the most rows of a step; 1, which lm_eval fills in, and `auto` leave it to "
        "the engine |"
    )
    yield "| `--max_batch_size` | the most rows of a step |"
    yield (
        "| `--device` | `cpu` or `cuda:N`: where a run's own worker computes; a machine without that GPU uses what JAX "
        "finds |"
    )
    yield "\nWhat becomes of the others is in [features.md](features.md).\n"


def _variables() -> Iterator[str]:
    yield "## Variables of the environment\n"
    yield "| variable | meaning |\n| --- | --- |"
    for name, meaning in VARIABLES:
        yield f"| {', '.join(f'`{each}`' for each in name.split(', '))} | {meaning} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
