"""The options that say which model a command computes with, as lm_eval has them."""

from __future__ import annotations

import argparse

from lm_eval._cli.utils import MergeDictAction


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that loads a model; the arguments of the model are parsed by lm_eval's own rules."""
    parser.add_argument(
        "--model_args",
        "-a",
        nargs="+",
        type=str,
        required=True,
        action=MergeDictAction,
        metavar="ARG",
        help="as in lm_eval: model_tag=mine,size=large,api=api.py; port= or endpoint= selects a running broker",
    )
    parser.add_argument(
        "--device", metavar="cpu|cuda:N", help="device of the embedded worker; default: the first available"
    )
    parser.add_argument(
        "--batch_size", metavar="N", help="maximum rows per step, if above 1; default: chosen by the engine"
    )
