"""The page is the library's default model: same losses, same routing, same gradients, same step; and it is one page."""

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe.course import one_page
from minimoe.training import optimizer

SIZES = dict(vocab_size=11, d_model=12, n_layers=2, n_heads=3, d_hidden=6, n_experts=7, max_sequence=8)
CASES = {
    "dropless": dict(),
    "drops": dict(capacity_factor=0.6),
    "one slot per expert": dict(capacity_factor=0.01),
    "three experts per token": dict(top_k=3, capacity_factor=1.1),
    "heavy auxiliary losses": dict(capacity_factor=0.8, balance_coef=0.7, z_coef=0.3),
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def batch_and_params(dtype=np.float64, seed=0):
    """Random parameters, no gain of which is 1, and a batch in which tokens repeat."""
    rng, config = np.random.default_rng(seed), minimoe.ModelConfig(**SIZES)
    params = {name: (w + 0.3 * rng.normal(size=w.shape)).astype(dtype)
              for name, w in minimoe.init_params(config, seed, np.float64).items()}
    return params, *rng.integers(0, config.vocab_size, (2, 5, 8))


def error(a, b):
    return np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))


def assert_same(ours, theirs, tolerance=1e-12):
    """The same keys, and each array the same up to rounding error."""
    assert ours.keys() == theirs.keys()
    wrong = {name: error(ours[name], theirs[name]) for name in ours}
    assert {name: e for name, e in wrong.items() if not e < tolerance} == {}


@each_case
def test_losses_and_gradients_are_those_of_the_library_and_the_gradients_are_right(options):
    params, tokens_BS, targets_BS = batch_and_params()
    (losses, _), backward = one_page.objective(params, tokens_BS, targets_BS, **options)
    theirs, grads = minimoe.loss_and_grads(params, tokens_BS, targets_BS, minimoe.ModelConfig(**SIZES, **options))
    assert_same(losses, {"ce": theirs.ce, "balance": theirs.balance, "z": theirs.z, "total": theirs.total})
    assert_same(backward(), grads)
    # the slope along a random direction by the complex step, which owes nothing to the library
    rng = np.random.default_rng(1)
    direction = {name: rng.normal(size=w.shape) for name, w in params.items()}
    moved = {name: w + 1e-30j * direction[name] for name, w in params.items()}
    (losses, _), _ = one_page.objective(moved, tokens_BS, targets_BS, **options)
    slope = sum((grads[name] * direction[name]).sum() for name in params)
    assert losses["total"].imag / 1e-30 == pytest.approx(slope, rel=1e-12)


@each_case
@pytest.mark.parametrize("ties", [False, True])
def test_routing_is_that_of_the_library(options, ties):
    params, tokens_BS, targets_BS = batch_and_params()
    if ties:  # all experts score 0: the first K get every token
        params |= {name: 0 * w for name, w in params.items() if name.endswith("w_router_DE")}
    (_, ours), _ = one_page.objective(params, tokens_BS, targets_BS, **options)
    config = minimoe.ModelConfig(**SIZES, **options, eval_capacity_factor=options.get("capacity_factor"))
    _, theirs = minimoe.forward(params, tokens_BS, config)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our["expert_TK"].ravel(), their.expert_A)
        np.testing.assert_array_equal(our["kept_N"], their.kept_N)
        assert error(our["gate_TK"].ravel(), their.gate_A) < 1e-12
        assert their.kept_A.all() == ("capacity_factor" not in options)


def test_capacity_by_hand():
    # T = 100 tokens choose experts 0 and 1 of E = 4: C = 1.1 * 2 * 100 / 4 = 55 slots, for the first 55 tokens
    kept_N, count_E = one_page.keep(np.tile([1, 0], (100, 1)), 4, 1.1)
    np.testing.assert_array_equal(kept_N, [*range(1, 110, 2), *range(0, 110, 2)])  # expert 0 is each second choice
    np.testing.assert_array_equal(count_E, [55, 55, 0, 0])


@pytest.mark.parametrize("clip_norm", [0.3, 100.0])
def test_five_steps_are_those_of_the_library(clip_norm):
    config = minimoe.TrainConfig(n_steps=5, warmup_steps=2, clip_norm=clip_norm)
    ours, tokens_BS, targets_BS = batch_and_params()
    theirs = {name: w.copy() for name, w in ours.items()}
    our_moments, their_moments = optimizer.start_moments(ours), optimizer.start_moments(theirs)
    for step in range(config.n_steps):
        grads = one_page.objective(ours, tokens_BS, targets_BS, capacity_factor=0.6)[1]()
        norm = optimizer.global_norm(grads)
        assert (norm > clip_norm) == (clip_norm < 1)
        one_page.adamw_step(ours, grads, our_moments, step, optimizer.learning_rate(step, config), clip_norm=clip_norm)
        optimizer.adamw_update(theirs, grads, their_moments, step, config, optimizer.clip_scale(norm, clip_norm))
    assert_same(ours, theirs)
    for our, their in zip(our_moments, their_moments, strict=True):
        assert_same(our, their)


def test_float32_stays_float32_and_only_the_step_changes_what_it_is_given():
    params, tokens_BS, targets_BS = batch_and_params(np.float32)
    for array in (*params.values(), tokens_BS, targets_BS):
        array.flags.writeable = False
    (losses, routings), backward = one_page.objective(params, tokens_BS, targets_BS, capacity_factor=0.6)
    grads, second, moments = backward(), backward(), optimizer.start_moments(params)
    assert all(np.array_equal(grads[name], second[name]) for name in grads)
    with pytest.raises(ValueError, match="read-only"):
        one_page.adamw_step(params, grads, moments, 0)
    params = {name: array.copy() for name, array in params.items()}
    one_page.adamw_step(params, grads, moments, 0)
    made = [losses, grads, params, *moments, *({"gate_TK": routing["gate_TK"]} for routing in routings)]
    assert {array.dtype for tree in made for array in tree.values()} == {np.dtype(np.float32)}


def test_the_page_is_one_page_and_needs_numpy_alone():
    source = Path(one_page.__file__).read_text("utf-8")
    assert len(source.splitlines()) <= 250
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]


def test_run_as_a_program_it_learns(capsys):
    runpy.run_path(one_page.__file__, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines]
    assert max(map(len, lines)) <= 80
    assert losses[0] > 2 and losses[-1] < 0.2
