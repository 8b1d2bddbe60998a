"""A decoder in PyTorch with a state and trees, so that shared prefixes are computed once: engine=torch.

A state holds the keys and values of a row's tokens, and their number. `extend` may change the state that it is given.
"""

import torch
from torch.nn import functional

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS, MAX_LENGTH = 2, 64, 4, 512


class Decoder(torch.nn.Module):
    """Weights of a small decoder; `attend` says which keys each token sees."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.positions = torch.nn.Embedding(MAX_LENGTH, WIDTH)
        self.projections = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.outputs = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens, positions, mask, remember):
        """Return the hidden states [b, t, d] of tokens int64[b, t].

        ``remember(layer, keys, values)`` returns the keys and values [b, n, d] to attend to; mask is bool[b, t, n].
        """
        x = self.embedding(tokens) + self.positions(positions.clamp(max=MAX_LENGTH - 1))
        for layer, (project, output) in enumerate(zip(self.projections, self.outputs, strict=True)):
            query, key, value = project(functional.layer_norm(x, (WIDTH,))).chunk(3, dim=-1)
            parts = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, *remember(layer, key, value)))
            mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask[:, None])
            x = x + output(mixed.transpose(1, 2).flatten(2))
        return functional.layer_norm(x, (WIDTH,))


def init_state(module, batch, capacity):
    """Return the state of empty rows; the first axis of each tensor is the row."""
    device = module.head.weight.device
    layers = [torch.zeros(batch, 2, capacity, WIDTH, device=device) for _ in range(LAYERS)]
    return {"layers": layers, "lengths": torch.zeros(batch, dtype=torch.int64, device=device)}


def extend(module, tokens, lengths, state):
    """Append the first ``lengths`` tokens of each row to the state. Padding lies after them, where the next tokens go."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    positions = state["lengths"][:, None] + torch.arange(tokens.shape[1], device=tokens.device)

    def remember(layer, keys, values):
        stored = state["layers"][layer]
        stored[rows, 0, positions], stored[rows, 1, positions] = keys, values
        return stored[:, 0], stored[:, 1]

    capacity = state["layers"][0].shape[2]
    mask = torch.arange(capacity, device=tokens.device) <= positions[:, :, None]
    hidden = module(tokens, positions, mask, remember)
    return hidden, {**state, "lengths": state["lengths"] + lengths}


def prefill(module, tokens, depths, ends, state):
    """Return the hidden states of trees after a state of one row, and the keys and values of their tokens."""
    count = tokens.shape[1]
    places = torch.arange(count, device=tokens.device)
    mask = (places[:, None] >= places) & (places[:, None] < ends[:, None, :])
    before = 0 if state is None else int(state["lengths"][0])
    entries = []

    def remember(layer, keys, values):
        entries.append(torch.stack([keys, values], dim=2))
        if state is None:
            return keys, values
        stored = state["layers"][layer][:, :, :before].expand(len(keys), -1, -1, -1)
        return torch.cat([stored[:, 0], keys], dim=1), torch.cat([stored[:, 1], values], dim=1)

    mask = torch.cat([mask.new_ones(len(tokens), count, before), mask], dim=2)
    return module(tokens, before + depths, mask, remember), entries


def branch(module, tokens, depths, ends, state):
    """Return the hidden states of trees."""
    return prefill(module, tokens, depths, ends, state)[0]


def append(module, state, entries, path, length):
    """Append the tokens of a path through the trees of a prefill to a state of one row."""
    begin = int(state["lengths"][0])
    for stored, entry in zip(state["layers"], entries, strict=True):
        stored[0, :, begin : begin + length] = entry.flatten(0, 1)[path[:length]].transpose(0, 1)
    return {**state, "lengths": state["lengths"] + length}


def unembed(module, hidden):
    """Return the logits of hidden states."""
    return module.head(hidden)


def load_model(model_tag, **kwargs):
    """Return a model with random weights, which a tag such as ``seed-3`` chooses."""
    torch.manual_seed(int(model_tag.rpartition("-")[2]))
    return Model(
        params=Decoder(),
        init_state=init_state,
        extend=extend,
        branch=branch,
        prefill=prefill,
        append=append,
        unembed=unembed,
        max_length=MAX_LENGTH,
        vocab_size=VOCABULARY,
    )


def load_tokenizer(model_tag, **kwargs):
    """Return the tokenizer."""
    return Bytes()
