"""Divergence: its origin is found, and the run is neither saved nor treated as finished."""

import itertools
import re
import signal
from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.training import checkpoint, divergence, loop
from tests import small

SECOND_LAYER = replace(small.MODEL, first_dense_layers=1)


def divergence_of(state, path=None):
    with pytest.raises(divergence.Diverged) as caught:
        loop.train(state, small.CORPUS, path)
    return str(caught.value)


@pytest.mark.parametrize("name, value, words", [
    ("embed.w_VD", np.nan, "the parameter embed.w_VD"),
    ("layers.1.moe.w_router_DE", np.inf, "the parameter layers.1.moe.w_router_DE"),
    ("final.gain_D", -np.inf, "the parameter final.gain_D"),
    ("layers.1.attention.w_v_DGP", 3e38, "layer 1, attention"),  # finite, until something is multiplied with it
    ("layers.0.moe.w_up_EDF", 3e38, "layer 0, moe"),
    ("head.w_DV", 3e38, "the head"),
])
def test_divergence_is_found_where_it_begins(name, value, words):
    state, handler = small.new(), signal.getsignal(signal.SIGINT)
    for _ in range(2):
        loop.step_once(state, small.CORPUS)
    state.params[name].flat[slice(None) if np.isfinite(value) else 0] = value
    assert re.fullmatch(r"step 3: the loss is (nan|inf|-inf); the first number that is not finite is in " + words,
                        divergence_of(state))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("config", [SECOND_LAYER, small.BY_ROUTER["soft"]], ids=["dense, moe", "soft"])
def test_each_part_of_a_layer_has_its_words(config):
    state, ([batch], _) = small.new(config), small.first_batches(1)
    _, cache = model.objective_forward(state.params, batch.tokens_BS, batch.targets_BS, config, training=True)
    final = cache.model._replace(norm=(np.array(np.inf),))
    for (layer, kind), (part, words) in itertools.product(enumerate(config.layer_kinds), [
            ("attention_norm", "attention norm"), ("attention", "attention"), ("feed_forward_norm", "{} norm"),
            ("feed_forward", "{}")]):
        blocks = list(cache.model.blocks)
        blocks[layer] = blocks[layer]._replace(**{part: (np.ones(3), {"deep": [np.array([1, np.nan])]})})
        spoilt = cache._replace(model=final._replace(blocks=blocks))
        assert divergence.first_not_finite(state.params, spoilt) == f"layer {layer}, {words.format(kind)}"
    assert divergence.first_not_finite(state.params, cache._replace(model=final)) == "the final norm"


@pytest.mark.parametrize("config, words", [
    (replace(small.MODEL, balance_coef=1e40), "the sum of the losses"), (small.MODEL, "layer 0, router z-loss"),
    (SECOND_LAYER, "layer 1, router z-loss")], ids=["balance", "z", "z of the second layer"])
def test_a_loss_that_overflows_by_itself_is_told_from_the_head(config, words):
    state = small.new(config)
    if "z-loss" in words:
        state.params[f"layers.{config.moe_layers[0]}.moe.w_router_DE"] *= np.float32(1e22)
    assert divergence_of(state).endswith(f"the first number that is not finite is in {words}")


def test_a_gradient_that_is_not_finite_is_found_and_named():
    """The norm of numbers around 1e25 overflows in float32."""
    assert divergence.finite_norm({"a": np.array([3.0]), "b": np.array([-4.0])}, 0) == 5
    for b, words in (([0, np.nan], "nan; the first number that is not finite is in the gradient of b"),
                     ([1e25], "inf; its numbers are finite, but too large to square")):
        with np.errstate(over="ignore"), pytest.raises(divergence.Diverged, match=f"^step 5: the gradient is {words}$"):
            divergence.finite_norm({"a": np.ones(2), "b": np.array(b, np.float32)}, 4)


def test_too_high_a_learning_rate_diverges_at_a_place_and_leaves_the_last_good_checkpoint(tmp_path):
    path, state = tmp_path / "checkpoint.npz", small.new(learning_rate=1e10)
    assert re.match(r"step 2: .* is in (layer \d, |the final norm|the head|the gradient of \w+\.)",
                    divergence_of(small.new(learning_rate=1e10, checkpoint_every=1), path))
    loop.step_once(state, small.CORPUS)
    assert small.numbers(checkpoint.load(path)) == small.numbers(state)


@pytest.mark.parametrize("training, reason", [
    (dict(learning_rate=1e39, n_steps=1), "the parameter embed.w_VD is no longer finite"),
    (dict(learning_rate=1e39, checkpoint_every=1), "the parameter embed.w_VD is no longer finite"),
    (dict(learning_rate=1e10, n_steps=1), "the loss on the held-out text is nan"),
], ids=str)
def test_what_has_diverged_is_neither_saved_nor_finished(tmp_path, training, reason):
    path, state = tmp_path / "checkpoint.npz", small.new(warmup_steps=0, **training)
    assert divergence_of(state, path) == f"step 1: {reason}"
    assert not path.exists() and "eval_ce" not in state.history
