"""Sampling text, one token at a time, with a KV cache.

A cached step sees one token, which must get the routing that the full sequence would give it.  That holds for causal
routers without a capacity; everything else is refused.  With a capacity, which tokens are dropped depends on the other
tokens in the batch.  A router that compares tokens (expert choice) would look into a future that does not exist yet.
"""

import math

import numpy as np

from minimoe import model, require
from minimoe.config import ModelConfig
from minimoe.generation import decoding
from minimoe.moe import routers


def generate(params, config, prompt_S, n_tokens, temperature=1.0, top_k=None, top_p=None, seed=0):
    """The prompt and n_tokens more.

    prompt_S: at least one token.  temperature: divides the logits (1); 0 always takes the likeliest token.
    top_k: sample among the k likeliest tokens only.  top_p: among the fewest tokens whose probabilities reach p
    together.  Returns an array of tokens.
    Raises ValueError for a value out of range, or a config that cannot generate, with the reason.
    """
    check_config(config)
    tokens_S = list(check_prompt(prompt_S, config))
    tokens_S.extend(stream(params, config, prompt_S, n_tokens, temperature, top_k, top_p, seed))
    return np.array(tokens_S)


def stream(params, config, prompt_S, n_tokens, temperature=1.0, top_k=None, top_p=None, seed=0):
    """Iterate over the new tokens of `generate` as they are made.

    When the context is full, its older half is dropped and the rest is read again, so the logits are exactly those of
    a forward pass over the tokens in the context.
    """
    check_config(config)
    check_options(n_tokens, temperature, top_k, top_p, seed)
    model.check_params(params, config)
    view = check_prompt(prompt_S, config).tolist()[-config.max_sequence:]
    return _stream(params, config, view, n_tokens, (temperature, top_k, top_p), np.random.default_rng(seed))


def _stream(params, config, view, n_tokens, options, rng):
    room, decoder = min(config.max_sequence, len(view) + n_tokens), None
    for _ in range(n_tokens):
        if decoder is None:
            logit_V, decoder = decoding.start(params, config, np.array(view), room)
        else:
            logit_V = decoding.step(decoder, view[-1], len(view) - 1)
        view.append(sample(logit_V, *options, rng))
        yield view[-1]
        if len(view) > config.max_sequence:
            view, decoder = view[-max(config.max_sequence // 2, 1):], None


def sample(logit_V, temperature, top_k, top_p, rng):
    """One token, drawn from softmax(logit / temperature) among those that top_k and top_p leave.

    top_p keeps the fewest likeliest tokens whose probabilities reach p.          [arXiv:1904.09751, sec. 3.1]
    Raises ValueError if the logits are not numbers, before anything is chosen, or an option is out of range.
    """
    check_options(0, temperature, top_k, top_p, 0)
    require.generator("rng", rng, optional=False)
    logit_V = require.array("logit_V", logit_V, "fiu", 1)
    if not logit_V.size or not np.isfinite(logit_V.max()):  # max() returns NaN if there is any
        raise ValueError("logit_V is not finite: the parameters are unusable, perhaps because training diverged")
    order_V = np.argsort(-logit_V, kind="stable")[:top_k]
    if temperature == 0:
        return int(order_V[0])
    with np.errstate(over="ignore"):  # a temperature close to 0 gives -inf, a probability of 0
        scaled_V = (logit_V[order_V] - logit_V[order_V[0]]).astype(float) / temperature
    reached_V = np.exp(scaled_V).cumsum()
    reached_V /= reached_V[-1]
    last = len(reached_V) - 1 if top_p is None else reached_V.searchsorted(top_p)
    return int(order_V[reached_V.searchsorted(rng.random() * reached_V[last], side="right")])


def causal(config):
    """Whether a token's output in evaluation depends only on itself and earlier tokens, apart from capacity."""
    return set(config.layer_kinds) == {"dense"} or routers.ROUTERS[config.router].FACTS.causal_in_evaluation


def check_config(config):
    """Raise ValueError unless a cached step of this model equals the full forward pass."""
    require.record("config", config, ModelConfig)
    if not causal(config):
        raise ValueError(f"router = {config.router!r} cannot generate: it is not causal, so the routing of a token "
                         "would depend on tokens that do not exist yet")
    if config.eval_capacity_factor is not None and config.moe_layers:
        raise ValueError(f"eval_capacity_factor = {config.eval_capacity_factor} cannot generate: the capacity of an "
                         "expert depends on how many tokens are routed together, so a single token would be routed "
                         "differently; use eval_capacity_factor=None (--dropless)")


def check_options(n_tokens, temperature, top_k, top_p, seed):
    """Raise ValueError for a sampling option out of range."""
    require.whole("n_tokens", n_tokens, most=10**9)
    require.whole("seed", seed)
    require.number("temperature", temperature)
    if top_k is not None:
        require.whole("top_k", top_k, 1)
    if top_p is not None:
        require.number("top_p", top_p, "a number above 0 and at most 1, or None", math.ulp(0), 1)


def check_prompt(prompt_S, config):
    """The prompt as an array.  Raises ValueError if it is empty or not whole numbers in [0, V)."""
    prompt_S = np.asarray(prompt_S)
    if prompt_S.ndim != 1 or len(prompt_S) == 0:
        raise ValueError(f"prompt_S has shape {prompt_S.shape}: must be one row of at least one token")
    return model.check_tokens(prompt_S[:, None], config, "prompt_S")[:, 0]
