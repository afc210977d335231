"""Pages of the router explorer for tests in a browser: small models, and what the page of one shows."""

import json
from types import SimpleNamespace

import numpy as np

from minimoe import gradcheck, model
from minimoe.config import ModelConfig
from minimoe.moe import routers
from minimoe.training.tokenizer import Tokenizer

TEXT, ODD = "the cat\nsat on the mat", "<b>&\t</script>\n😀"
TOKENS = "#tokens button"
PHONE = dict(viewport=dict(width=360, height=740), has_touch=True, is_mobile=True)


def make(router="softmax_topk", dtype=np.float32, **fields):
    """A small model with random weights, as much of a TrainState as the page needs."""
    tokenizer = Tokenizer.of(TEXT, ODD)
    config = ModelConfig(**dict(vocab_size=len(tokenizer), d_model=16, n_layers=3, n_heads=2, d_hidden=6, n_experts=8,
                                top_k=routers.ROUTERS[router].FACTS.top_k or 2, max_sequence=32,
                                router=router) | fields)
    params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
    return SimpleNamespace(model_config=config, tokenizer=tokenizer, params=params)


def routed(state, text=TEXT):
    return model.forward(state.params, state.tokenizer.encode(text)[None], state.model_config)[1]


def decisions(page):
    """What the page shows of each layer: its assignments as (token, rank, expert, slot, kept)."""
    layers = json.loads(page.evaluate("JSON.stringify(routings.map(({ assignments }) => assignments))"))
    return [[(a["token"], a["rank"], a["expert"], a["slot"], a["kept"]) for a in layer] for layer in layers]
