"""Where ``gemma`` of google-deepmind and Tunix keep the matrices of attention: Tunix has taken over the names."""

from __future__ import annotations

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import LayerLocation, Rule, vector_rules

_OUTPUT = {"self_attn.o_proj.weight": Rule("attn/attn_vec_einsum/w", "h k d -> d (h k)")}
_NORMS = vector_rules("scale", {"self_attn.q_norm": "attn/_query_norm", "self_attn.k_norm": "attn/_key_norm"})
_FUSED = {
    "self_attn.q_proj.weight": Rule("attn/qkv_einsum/w", "0 h d k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attn/qkv_einsum/w", "1 h d k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attn/qkv_einsum/w", "2 h d k -> (h k) d"),
}
_GROUPED = {
    "self_attn.q_proj.weight": Rule("attn/q_einsum/w", "h d k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attn/kv_einsum/w", "0 h d k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attn/kv_einsum/w", "1 h d k -> (h k) d"),
}


def attention_rules(tree: ArrayTree, location: LayerLocation) -> dict[str, Rule]:
    """Return the rules of attention: one array of queries, keys and values if there are equally many heads of each."""
    is_fused = (*location.prefix, "attn", "qkv_einsum", "w") in tree
    return {**_OUTPUT, **_NORMS, **(_FUSED if is_fused else _GROUPED)}
