"""Scores of units against sums written out, and against what happens when the unit is turned down."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.sparsity import importance, structured
from tests import cases
from tests.unit.sparsity.test_structured import CONFIG

PARAMS = gradcheck.random_params(CONFIG)
TOKENS_BS, TARGETS_BS = np.random.default_rng(0).integers(0, 7, (2, 4, 9))
MIXED = replace(CONFIG, first_dense_layers=1, n_shared_experts=1, d_dense=8)
OUTPUTS = {"heads": ("w_o_HPD", 2), "neurons": ("w_down_EFD", 2), "dense neurons": ("w_down_JD", 1),
           "shared": ("shared.w_down_JD", 1), "experts": ("w_down_EFD", 1)}


def ce(params, config, tokens_BS, targets_BS):
    return model.objective_forward(params, tokens_BS, targets_BS, config)[0][0].ce


@pytest.mark.parametrize("kind", importance.KINDS)
def test_the_gate_score_is_the_slope_of_the_loss_along_a_factor_on_the_units_output(kind):
    """A factor on the rows of the matrix that writes the output is one on the output: by the complex step."""
    params = gradcheck.random_params(MIXED)
    scores = importance.importance(params, MIXED, kind, "gate", TOKENS_BS, TARGETS_BS).scores
    assert sorted(scores) == ([0] if kind == "dense neurons" else [0, 1, 2] if kind == "heads" else [1, 2])
    layer = max(scores)
    last, score = OUTPUTS[kind][0], scores[layer]
    name = next(name for name in params if name.startswith(f"layers.{layer}.") and name.endswith(last)
                and ("shared" in name) == (kind == "shared"))
    for unit in np.ndindex(score.shape):
        rows = (slice(2 * unit[0], 2 * unit[0] + 2),) if kind == "heads" else unit  # 6 heads on 3 key heads
        turned = params[name].astype(complex)
        turned[rows] *= 1 + 1e-30j
        slopes = [ce(params | {name: turned}, MIXED, TOKENS_BS[b:b + 1], TARGETS_BS[b:b + 1]).imag / 1e-30
                  for b in range(4)]
        assert score[unit] == pytest.approx(np.abs(slopes).mean(), rel=1e-9)


def test_norms_and_taylor_scores_by_hand():
    own = {name: array for name, array in PARAMS.items() if name.startswith("layers.1.")}
    gate, up, down = (own[f"layers.1.moe.{name}"] for name in cases.EXPERTS)
    norm = importance.importance(PARAMS, CONFIG, "neurons", "norm").scores[1]
    assert norm[2, 3] == pytest.approx(np.sqrt(sum((w ** 2).sum() for w in (gate[2, :, 3], up[2, :, 3], down[2, 3]))))
    taylor = importance.importance(PARAMS, CONFIG, "heads", "taylor", TOKENS_BS, TARGETS_BS).scores[1]
    _, grads = batches.loss_and_grads(PARAMS, TOKENS_BS, TARGETS_BS, replace(CONFIG, balance_coef=0.0, z_coef=0.0))
    total = 0.0  # of key head 1: query heads 2 and 3, its keys and its values
    for name, rows in (("w_q_DHP", np.s_[:, 2:4]), ("w_k_DGP", np.s_[:, 1]), ("w_v_DGP", np.s_[:, 1]),
                       ("w_o_HPD", np.s_[2:4])):
        w = own[f"layers.1.attention.{name}"]
        total += ((w * grads[f"layers.1.attention.{name}"])[rows] ** 2).sum()
    assert taylor[1] == pytest.approx(total, rel=1e-9)


def test_activations_are_means_over_the_tokens_that_an_expert_has():
    (_, (_, _, routing)), cache = model.model_forward(PARAMS, TOKENS_BS, CONFIG)
    norm, weights = cache.blocks[2].feed_forward_norm, parameters.scope(PARAMS, "layers.2.moe.")
    x_TD = norm.unit_TD * norm.gain_D
    neurons = importance.importance(PARAMS, CONFIG, "neurons", "activation", TOKENS_BS).scores[2]
    whole = importance.importance(PARAMS, CONFIG, "experts", "activation", TOKENS_BS).scores[2]
    for e in range(4):
        own = x_TD[routing.token_A[routing.expert_A == e]]
        gate, up = own @ weights["w_gate_EDF"][e], own @ weights["w_up_EDF"][e]
        np.testing.assert_allclose(neurons[e], np.abs(gate / (1 + np.exp(-gate)) * up).mean(axis=0), rtol=1e-12)
        lengths = [np.sqrt((cases.expert(x_D, weights, e) ** 2).sum()) for x_D in own]
        assert whole[e] == pytest.approx(np.mean(lengths), rel=1e-12)
    load = importance.importance(PARAMS, CONFIG, "experts", "load", TOKENS_BS).scores[2]
    np.testing.assert_array_equal(load, routing.load_E)


def test_without_the_expert_of_least_output_is_the_best_subset_of_one_less():
    scores = importance.importance(PARAMS, CONFIG, "experts", "output", TOKENS_BS)
    states = importance.stream(PARAMS, TOKENS_BS, CONFIG)
    assert states.shape == (4, TOKENS_BS.size, 12)
    np.testing.assert_allclose(states[0], PARAMS["embed.w_VD"][TOKENS_BS.ravel()], rtol=1e-12)
    _, cache = model.model_forward(PARAMS, TOKENS_BS, CONFIG)
    norm = cache.blocks[1].feed_forward_norm
    kept_E, error = structured.best_experts(norm.unit_TD * norm.gain_D, parameters.scope(PARAMS, "layers.1.moe."),
                                            CONFIG, 3)
    np.testing.assert_array_equal(kept_E, scores.keep(3)[1])
    assert error == pytest.approx(scores.scores[1].min(), rel=1e-12)


def test_an_expert_that_no_token_reached_is_reported_and_no_method_that_needs_tokens_takes_it_for_useless():
    name = "layers.1.moe.w_router_DE"
    lonely = PARAMS | {name: np.zeros((12, 4))}  # of equal scores, experts 0 and 1 take every token
    for kind, method in (("experts", "activation"), ("experts", "output"), ("neurons", "taylor"), ("experts", "gate")):
        found = importance.importance(lonely, CONFIG, kind, method, TOKENS_BS, TARGETS_BS)
        assert found.unreached == {1: [2, 3]}
        assert np.isnan(found.scores[1][2:]).all() and not np.isnan(found.scores[1][:2]).any()
        with pytest.raises(ValueError, match="layer 1: no token of the text reached the experts 2, 3, so their impor"):
            found.keep(2)
    load = importance.importance(lonely, CONFIG, "experts", "load", TOKENS_BS)
    assert load.unreached == {1: [2, 3]} and load.keep(2)[1].tolist() == [True, True, False, False]
    norm = importance.importance(lonely, CONFIG, "neurons", "norm")
    assert norm.unreached == {} and (norm.keep(2)[1].sum(axis=1) == 2).all()


def test_what_is_kept_by_any_score_is_a_model():
    params, seen = gradcheck.random_params(MIXED), 0
    for kind, n in {"heads": 2, "neurons": 3, "shared": 3, "experts": 2, "dense neurons": 4}.items():
        for method in importance.METHODS + importance.OF_EXPERTS * (kind == "experts"):
            kept = importance.importance(params, MIXED, kind, method, TOKENS_BS, TARGETS_BS).keep(n)
            keep = {"neurons" if "neurons" in kind else kind: kept}
            if kind in ("neurons", "shared"):
                other = "shared" if kind == "neurons" else "neurons"
                keep[other] = importance.importance(params, MIXED, other, "norm").keep(3)
            smaller, config = structured.shrink(params, MIXED, keep)
            model.check_params(smaller, config)
            seen += 1
    assert seen == 4 * 5 + 2


@pytest.mark.parametrize(("kind", "method", "text", "message"), [
    ("rows", "norm", (), "kind = 'rows': must be one of heads"),
    ("heads", "load", (), "method = 'load': must be one of norm, activation"),
    ("heads", "activation", (), "activation needs tokens_BS, calibration text"),
    ("heads", "gate", (TOKENS_BS,), "gate needs targets_BS"),
    ("shared", "norm", (), "the model has no shared: its layers are moe, moe, moe"),
])
def test_scores_that_cannot_be_had_are_refused(kind, method, text, message):
    with pytest.raises(ValueError, match=message):
        importance.importance(PARAMS, CONFIG, kind, method, *text)
