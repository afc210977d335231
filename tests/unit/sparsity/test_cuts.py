"""One name for every way to prune: neurons of all kinds of layers, experts that no token reached, few tokens."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.sparsity import cuts, masks
from minimoe.training import pruned
from tests import small

TEXT = small.first_batches(1)[0][0][:2]


def test_neurons_go_from_dense_layers_experts_and_shared_experts_alike():
    """Of the experts' 6 neurons 2 stay, of two shared ones 2 x 2, of a dense layer's 9 a third."""
    config = replace(small.MODEL, n_shared_experts=2, first_dense_layers=1, d_dense=9)
    found = cuts.cut(model.init_params(config, 0), config, "neurons", *TEXT, keep=2, score="norm")
    assert found.config == replace(config, d_hidden=2, d_dense=3)
    model.check_params(found.params, found.config)
    assert found.words[0].startswith("neurons: 2 of 6 stay ")


def test_experts_that_no_token_reached_are_named_and_never_judged_by_what_is_not_known():
    """Of zero scores the first two of four experts are chosen, for every token."""
    params = model.init_params(small.MODEL, 0)
    for i in range(2):
        params[f"layers.{i}.moe.w_router_DE"] = np.zeros((8, 4), np.float32)
    words = cuts.cut(params, small.MODEL, "experts", *TEXT, keep=2, score="load").words[1:]
    assert words == ["no calibration token reached the experts 2, 3 of layer 0; 2, 3 of layer 1"]
    with pytest.raises(ValueError, match="no token of the text reached the experts 2, 3"):
        cuts.cut(params, small.MODEL, "experts", *TEXT, keep=2)
    found = cuts.cut(params, small.MODEL, "wanda", *TEXT, sparsity=0.5)
    assert found.masks["layers.0.moe.w_up_EDF"][2:].all() and not found.masks["layers.0.moe.w_up_EDF"][:2].all()
    assert "no calibration token reached the experts 2, 3 of layers.0.moe; 2, 3 of layers.1.moe" in found.words


def test_too_little_calibration_text_is_refused_with_how_much_would_do():
    """A matrix of 24 inputs needs three sequences of 8 tokens; a magnitude needs none."""
    state = small.new(replace(small.MODEL, d_model=24))
    state.rng.random()  # as training does
    with pytest.raises(ValueError, match="calibration = 2: 16 tokens are too few for wanda: .* 24, which is 3 seq"):
        pruned.prune(state, small.CORPUS, "wanda", small.TRAINING, calibration=2, sparsity=0.5)
    new, _ = pruned.prune(state, small.CORPUS, "magnitude", small.TRAINING, calibration=0, sparsity=0.5)
    assert new.rng.bit_generator.state == state.rng.bit_generator.state and new.rng is not state.rng


@pytest.mark.parametrize(("fields", "method", "words"), [
    (dict(n_experts=1, top_k=1), "experts", "n_experts = 1: .* no experts to remove"),
    (dict(router="soft"), "experts", "the layers are soft, soft: there are no experts to remove one by one"),
    (dict(router="expert_choice"), "experts", "router = 'expert_choice': no expert can be removed"),
    (dict(n_kv_heads=1), "heads", "keep = 1: there are 1 heads"),
    (dict(n_layers=1), "layers", "keep = 1: there are 1 layers")])
def test_what_a_model_does_not_have_or_its_router_forbids_is_refused(fields, method, words):
    config = replace(small.MODEL, **fields)
    with pytest.raises(ValueError, match=words):
        cuts.cut(model.init_params(config, 0), config, method, *TEXT, keep=1)


def test_a_weight_that_is_gone_stays_gone_when_more_are_pruned():
    name = "layers.0.attention.w_q_DHP"
    params, old = model.init_params(small.MODEL, 0), {name: np.eye(8, dtype=bool).reshape(8, 2, 4)}
    found = cuts.cut(masks.apply(params, old), small.MODEL, "magnitude", sparsity=0.5, old_masks=old)
    np.testing.assert_array_equal(found.masks[name], old[name])
    with pytest.raises(ValueError, match="^magnitude: nothing would be removed: 0.0% of the"):
        cuts.cut(params, small.MODEL, "magnitude", sparsity=0)
    with pytest.raises(ValueError, match="masks.'b'.: there is no such parameter"):
        cuts.cut(params, small.MODEL, "layers", *TEXT, keep=1, old_masks={"b": old[name]})
