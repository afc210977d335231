"""What arguments have to be, and that the public functions refuse wrong ones by name and value."""

import numpy as np
import pytest

import minimoe
from minimoe import batches, cost, gradcheck, parameters, require
from minimoe.generation import decoding, sampling
from minimoe.gradcheck import numeric
from minimoe.moe import capacity, gates, linear_assignment
from minimoe.nn import ops
from minimoe.sparsity import densities, dynamic, masks, pruning, scores, sparsegpt, structured, upcycling
from tests import small

CONFIG, PARAMS = small.MODEL, minimoe.init_params(small.MODEL)
TOKENS_BS, ARRAYS = np.array([[1, 2, 3], [4, 5, 6]]), {"x": np.ones(2)}
MATRIX = np.arange(8.0).reshape(4, 2)
ROUTINGS = minimoe.forward(PARAMS, TOKENS_BS, CONFIG)[1]
GENERAL = None, "x", -1, 1.5, [], {}, object(), True, np.zeros((2, 2, 2)), np.array(["a"]), [1, 2]
SQUARE = dict(function=lambda arrays: (arrays["x"] ** 2).sum(), arrays=ARRAYS)
FACE = {
    minimoe.forward: dict(params=PARAMS, tokens_BS=TOKENS_BS, config=CONFIG, mask_BS=None),
    minimoe.loss_and_grads: dict(params=PARAMS, tokens_BS=TOKENS_BS, targets_BS=TOKENS_BS, config=CONFIG, mask_BS=None,
                                 rng=None, groups=1),
    minimoe.generate: dict(params=PARAMS, config=CONFIG, prompt_S=[1], n_tokens=1, temperature=1.0, top_k=None,
                           top_p=None, seed=0),
    minimoe.init_params: dict(config=CONFIG, seed=0, dtype=np.float32),
    minimoe.preset: dict(name="tiny", model=None, train=None),
    gradcheck.compare: SQUARE | dict(title="", grads={"x": np.full(2, 2.0)}, tolerance=1e-12, most=None, notes=(),
                                     method=gradcheck.complex_step),
    numeric.compare_directions: SQUARE | dict(title="", grads={"x": np.full(2, 2.0)}, count=1, notes=()),
    gradcheck.check_pair: dict(title="", forward=lambda x: (x * x, x), backward=lambda dy, x: 2 * x * dy,
                               arrays=ARRAYS),
    gradcheck.complex_step: SQUARE | dict(name="x", entries=[0]),
    gradcheck.central_difference: SQUARE | dict(name="x", entries=[0]),
    gradcheck.error: dict(analytic=np.ones(3), numeric=np.ones(3)),
    gradcheck.check_layer: dict(config=CONFIG, objective="task", seed=0, n_tokens=4),
    gradcheck.check_direction: dict(config=CONFIG, seed=0),
    gradcheck.flips: dict(before=ROUTINGS, after=ROUTINGS),
    gradcheck.random_batch: dict(config=CONFIG, seed=0),
    cost.count: dict(config=CONFIG, batch=1, sequence=4, groups=1, seed=0),
    CONFIG.with_top_k: dict(top_k=1), CONFIG.finer: dict(finer=1),
    sampling.sample: dict(logit_V=np.zeros(4), temperature=1.0, top_k=None, top_p=None, rng=np.random.default_rng(0)),
    decoding.start: dict(params=PARAMS, config=CONFIG, tokens_S=np.array([1, 2]), room=4),
    parameters.flatten: dict(params=PARAMS), parameters.count: dict(params=PARAMS),
    parameters.unflatten: dict(vector=parameters.flatten(PARAMS), like=PARAMS),
    batches.cut: dict(tokens_BS=TOKENS_BS, targets_BS=TOKENS_BS, groups=1, mask_BS=None),
    capacity.capacity: dict(n_assignments=4, n_tokens=2, n_experts=2, factor=1.0),
    gates.top_k_experts: dict(score_TE=np.ones((2, 3)), top_k=2),
    linear_assignment.balanced_assignment: dict(score_TE=np.eye(4)),
    ops.softmax_forward: dict(x_TE=np.ones((2, 3)), axis=-1),
    ops.cross_entropy_forward: dict(logit_TV=np.zeros((2, 3)), target_T=np.array([0, 1]), weight_T=np.full(2, 0.5)),
    ops.embedding_forward: dict(tokens_T=np.array([0, 1]), w_VD=np.ones((3, 2))),
    scores.wanda: dict(w_DF=MATRIX, x_TD=MATRIX.T), scores.movement: dict(w_DF=MATRIX, dw_DF=MATRIX),
    masks.lowest: dict(score=MATRIX, n_zeros=1), masks.per_output: dict(score_DF=MATRIX, sparsity=0.5),
    masks.n_of_m: dict(score_DF=MATRIX, kept=1, group=2),
    sparsegpt.prune: dict(w_DF=MATRIX, x_TD=MATRIX.T, sparsity=0.5, pattern=None, block=1, damp=0.1),
    pruning.prune: dict(params=PARAMS, config=CONFIG, method="wanda", tokens_BS=TOKENS_BS, sparsity=0.5, pattern=None,
                        names=None),
    densities.erdos_renyi: dict(shapes={"w": (4, 3)}, density=0.5), densities.uniform: dict(shapes={}, density=0.5),
    dynamic.drop_fraction: dict(step=1, initial=0.3, last_step=2),
    dynamic.rigl: dict(w=MATRIX, mask=MATRIX > 3, gradient=MATRIX, fraction=0.3, regrown="value"),
    dynamic.set: dict(w=MATRIX, mask=MATRIX > 3, fraction=0.3, rng=np.random.default_rng(0), regrown="value"),
    dynamic.snfs: dict(params={"w": MATRIX}, masks={"w": MATRIX > 3}, momenta={"w": MATRIX}, fraction=0.3,
                       regrown="value"),
    structured.best_experts: dict(x_TD=np.ones((2, 8)), weights=parameters.scope(PARAMS, "layers.0.moe."),
                                  config=CONFIG, n_kept=2),
    structured.block_influence: dict(x_LTD=np.ones((2, 3, 4))),
    structured.shrink: dict(params=PARAMS, config=CONFIG, keep={}),
    upcycling.upcycle: dict(params=minimoe.init_params(small.DENSE), config=small.DENSE, n_experts=4, top_k=2, seed=0,
                            noise=0.0, dropped=0.0),
}
"""Public function -> arguments that fit."""


@pytest.mark.parametrize("function", FACE, ids=lambda function: function.__name__)
def test_an_argument_that_does_not_fit_is_refused_as_a_value_and_as_nothing_else(function):
    """Some of these do fit some arguments: then nothing is raised."""
    function(**FACE[function])
    for name in FACE[function].keys() - {"title"}:
        for value in GENERAL:
            try:
                function(**FACE[function] | {name: value})
            except ValueError as error:
                assert str(error)


@pytest.mark.parametrize("dtype", [int, bool, object, complex, "i2", None, "nothing"])
def test_parameters_are_floating_point(dtype):
    with pytest.raises(ValueError, match="dtype = .*: must be a floating point type"):
        minimoe.init_params(CONFIG, dtype=dtype)


@pytest.mark.parametrize(("check", "fits", "refused", "words"), [
    (require.whole, (0, 3, np.int8(2)), (-1, 1.0, True, "1", np.nan, [1]), "a whole number, 0 or more"),
    (lambda name, value: require.whole(name, value, 1, 2), (1, 2), (0, 3), "a whole number from 1 to 2"),
    (require.number, (0, 0.5, np.float32(1)), (-1, np.inf, np.nan, False, "1", 1j), "a finite number of 0 or more"),
    (lambda name, value: require.one_of(name, value, {"a": 1, "b": 2}), ("a", "b"), ("c", 1, ["a"]), "one of a, b"),
    (lambda name, value: require.record(name, value, dict), ({},), ([], None), "a dict"),
    (require.mapping, ({},), ([], "a"), "a dict, name -> array"), (require.function, (len,), ("len",), "a function"),
    (require.sequence, ([1], (), np.ones(2)), ("ab", {}, 3, np.array(1)), "a list"),
    (require.generator, (None, np.random.default_rng(0)), (0, "r"), "a numpy.random.Generator or None")])
def test_each_check_names_the_argument_its_value_and_what_would_be_right(check, fits, refused, words):
    for value in fits:
        check("x", value)
    for value in refused:
        with pytest.raises(ValueError) as caught:
            check("x", value)
        assert str(caught.value).startswith("x = ") and str(caught.value).endswith(f": must be {words}")
