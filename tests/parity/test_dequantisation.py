"""Dequantised weights equal those of transformers' own functions, where these run on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from birdie_zmq.models.dequantisation import dequantise_fp8, dequantise_mxfp4
from tests import quantised_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_mxfp4() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, _ = quantised_weights.mxfp4(np.random.default_rng(1), experts=3, outputs=6, groups=2)
    blocks, scales = (torch.from_numpy(tensors[name]) for name in ("blocks", "scales"))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    mine = dequantise_mxfp4(tensors["blocks"], tensors["scales"])
    np.testing.assert_array_equal(mine.astype(np.float32), theirs.numpy())


@pytest.mark.parametrize("block", [16, None])
def test_fp8(block: int | None) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    random = np.random.default_rng(1)
    if block is None:
        tensors, _ = quantised_weights.fp8_whole(random, 32, 64)
    else:
        tensors, _ = quantised_weights.fp8_blocks(random, 32, 64, block=block)
    weight = torch.from_numpy(tensors["weight"].view(np.uint8)).view(torch.float8_e4m3fn)
    scale = torch.from_numpy(np.atleast_2d(tensors["weight_scale_inv"]))
    theirs = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scale, torch.float32)
    mine = dequantise_fp8(tensors["weight"], tensors["weight_scale_inv"], None if block is None else (block, block))
    np.testing.assert_array_equal(mine, theirs.numpy())
