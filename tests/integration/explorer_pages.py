"""Pages of the router explorer for tests in a browser: small models, and a visit to the page of one."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np

from minimoe import gradcheck, model
from minimoe.analysis import explorer
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


@contextlib.contextmanager
def visits(browser, folder):
    """A function that opens the page of a model; at the end it must have asked for no other file and logged nothing."""
    contexts, asked, said = [], [], []
    path = folder / "page.html"

    def opened(state, texts=(TEXT,), **options):
        explorer.save(explorer.page(state, list(texts)), path)
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(120_000)  # a busy machine is no error
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}


def decisions(page):
    """What the page shows of each layer: its assignments as (token, rank, expert, slot, kept)."""
    layers = json.loads(page.evaluate("JSON.stringify(routings.map(({ assignments }) => assignments))"))
    return [[(a["token"], a["rank"], a["expert"], a["slot"], a["kept"]) for a in layer] for layer in layers]
