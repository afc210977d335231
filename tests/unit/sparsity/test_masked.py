"""Masks in a training run: what is masked stays 0, the number of weights is constant, a resumed run is the run itself,
masks change as each method says, and training with masks is training the kept weights alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.config import train
from minimoe.gradcheck import numeric
from minimoe.sparsity import densities, dynamic, masked, masks, matrices, pruning, schedules
from minimoe.training import checkpoint, divergence, loop, optimizer
from tests import small

SPARSE = dict(sparsity=0.8, sparsity_every=3, n_steps=24, weight_decay=0.5, clip_norm=0.5, beta1=0.9)
CHANGING = [name for name, rule in masked.RULES.items() if rule.change]
NAMES, SHALLOW = matrices.names(small.MODEL), replace(small.MODEL, n_layers=1)


def new(name, config=small.MODEL, **training):
    return small.new(config, **SPARSE | dict(dynamic=name) | training)


def assert_zero_where_masked(state):
    for arrays in (state.params, *state.moments):
        assert not any(arrays[name][~mask].any() for name, mask in state.masks.items())


def weights_kept(state):
    """Of each matrix of each parameter."""
    return {name: matrices.stack(name, mask).sum(axis=(1, 2)).tolist() for name, mask in state.masks.items()}


@pytest.mark.parametrize("name", masked.RULES)
def test_nothing_masked_is_revived_and_a_resumed_run_is_the_run_itself(tmp_path, name):
    """With decay, momentum, clipping, groups and accumulation."""
    n_steps, groups = (200, 1) if name == "rigl" else (30, 2)
    path, counts, changes = tmp_path / "checkpoint.npz", [], set()
    options = dict(n_steps=n_steps, accumulate=2, groups=groups, batch=2, eval_every=99, eval_batches=1,
                   record_every=99, density="erdos_renyi", learning_rate=0.05)

    def look(state):
        assert_zero_where_masked(state)
        counts.append(weights_kept(state))
        changes.add(hash(b"".join(mask.tobytes() for mask in state.masks.values())))
        if state.step == n_steps - 20:
            checkpoint.save(path, state)

    straight = loop.train(new(name, SHALLOW, **options), small.CORPUS, on_step=look)
    resumed = checkpoint.load(path)
    assert resumed.step == n_steps - 20 and list(resumed.masks) == list(straight.masks)
    assert small.numbers(loop.train(resumed, small.CORPUS)) == small.numbers(straight)
    assert (len(changes) > 3) == (name in CHANGING) and np.mean(straight.history["ce"][-9:]) < 3.3
    total = [sum(map(sum, count.values())) for count in counts]
    if masked.RULES[name].starts_sparse:
        assert len(set(total)) == 1 and (name == "snfs" or all(count == counts[0] for count in counts))
    else:
        assert total == sorted(total, reverse=True)
    share = densities.erdos_renyi({n: matrices.shape(n, mask.shape) for n, mask in straight.masks.items()}, 0.2)
    for n, kept in counts[-1].items() if name != "snfs" else ():
        size = straight.masks[n].size // len(kept)
        assert kept == [size - math.floor(size * round(1 - share[n], 12))] * len(kept)


@pytest.mark.parametrize("name", ["static", "rigl"])
def test_training_with_masks_is_training_the_kept_weights_as_one_vector(name):
    """AdamW on the vector of the weights that are kept, with their gradients alone, clipped by their length."""
    state, (drawn, _) = small.in_float64(new(name, sparsity_every=2)), small.first_batches(1)
    start = dict(state.params)
    mask = parameters.flatten({n: state.masks.get(n, np.ones(w.shape, bool)) for n, w in start.items()})
    _, grads = batches.loss_and_grads(start, drawn[0].tokens_BS, drawn[0].targets_BS, small.MODEL)
    vector = {"w": parameters.flatten(start)[mask][:, None]}
    grad = {"w": parameters.flatten({n: grads[n] for n in start})[mask][:, None]}
    norm = np.linalg.norm(grad["w"])
    optimizer.adamw_update(vector, grad, optimizer.start_moments(vector), 0, state.train_config, 0.5 / norm)
    loop.step_once(state, small.CORPUS)
    assert state.history["grad_norm"] == [pytest.approx(norm, rel=1e-12)] and norm > 0.5
    matrix = parameters.flatten({n: np.full(w.shape, w.ndim > 1) for n, w in start.items()})[mask]  # gains do not decay
    np.testing.assert_allclose(parameters.flatten(state.params)[mask][matrix], vector["w"][matrix, 0], rtol=1e-9)
    assert not parameters.flatten(state.params)[~mask].any()


def test_the_gradient_through_masks_is_that_of_the_complex_step():
    config, batch = gradcheck.SMALL, gradcheck.random_batch(gradcheck.SMALL)
    params = gradcheck.random_params(config)
    keep = pruning.prune(params, config, "wanda", batch[0], 0.5)[1]
    _, grads = batches.loss_and_grads(masks.apply(params, keep), *batch, config)

    def through(arrays):
        return model.objective_forward(masks.apply(arrays, keep), *batch, config, training=True)[0][0].total

    report = numeric.compare_directions("masked", through, params, masks.apply(grads, keep))
    assert report.ok and all(row.error < 1e-12 for row in report.rows), report


@pytest.mark.parametrize("name", CHANGING)
def test_masks_change_at_their_steps_as_the_method_says(name):
    """RigL by the dense gradient, and without an update; the others after the update of the step."""
    state, rule = new(name, n_steps=12, sparsity=0.5, sparsity_end=1.0, drop_fraction=1.0), masked.RULES[name]
    first = parameters.flatten(state.masks)
    for step in range(1, 13):
        before, traces, grads = dict(state.masks), dict(state.traces), dense_gradient(state)
        seen = {n: w.copy() for n, w in state.params.items()}
        loop.step_once(state, small.CORPUS)
        changed = any((before[n] != mask).any() for n, mask in state.masks.items())
        assert changed == (step in (3, 6, 9))
        for n in NAMES if name == "snfs" else ():
            np.testing.assert_allclose(state.traces[n], 0.9 * traces[n] + 0.1 * grads[n], rtol=1e-4, atol=1e-6)
        if name == "rigl" and changed:
            assert all((state.params[n] == seen[n]).all() for n in seen if n not in NAMES)
            fraction = dynamic.drop_fraction(step, 1.0, 12)
            for n in NAMES:
                parts = (matrices.stack(n, array) for array in (seen[n], before[n], grads[n], state.params[n]))
                for w, mask, grad, after in zip(*parts, strict=True):
                    np.testing.assert_array_equal(after, dynamic.rigl(w, mask, grad, fraction)[0])
        if not rule.starts_sparse and changed:
            share = schedules.cubic(step, 0, 9, 0.5)
            assert all(kept == [m - math.floor(m * share)] * len(kept) for n, kept in weights_kept(state).items()
                       for m in [state.masks[n].size // len(kept)])
        new_weights = {n: mask & ~before[n] for n, mask in state.masks.items()}
        assert rule.starts_sparse or not any(grown.any() for grown in new_weights.values())
        assert not any(arrays[n][grown].any() for arrays in (state.params, *state.moments)
                       for n, grown in new_weights.items())
    now = parameters.flatten(state.masks)
    assert masked.moved(state) == ((now & ~first).sum(), now.sum()) and (first.all() or masked.moved(state)[0] > 0)
    assert state.train_config.n_mask_changes == 3


def dense_gradient(state):
    """The dense gradient of the next step."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state.rng.bit_generator.state
    copy = replace(state, rng=rng, history={}, masks={}, params={n: w.copy() for n, w in state.params.items()},
                   moments=optimizer.start_moments(state.params),
                   train_config=replace(state.train_config, dynamic="static", clip_norm=1e9))
    loop.step_once(copy, small.CORPUS)
    return {n: m / np.float32(1 - 0.9) for n, m in copy.moments[0].items()}


def test_a_lottery_ticket_and_a_pruned_model_are_trained_with_their_masks(tmp_path):
    """And saved, though their configuration asks for no sparsity."""
    state, trained = small.new(n_steps=4), small.trained(n_steps=4)
    keep = pruning.prune(trained.params, small.MODEL, "magnitude_global", None, 0.5)[1]
    state.params = schedules.rewind(state.params, keep)
    masked.put_on(state, keep)
    loop.train(state, small.CORPUS, tmp_path / "c.npz")
    assert_zero_where_masked(state)
    assert small.numbers(checkpoint.load(tmp_path / "c.npz")) == small.numbers(state) and [*state.masks] == [*keep]
    assert pruning.report(state.params, state.masks).pruned.sparsity == pytest.approx(0.5, abs=1e-3)
    state = loop.new_state(small.MODEL, new("gradual", sparsity=0.2).train_config, small.CORPUS, trained.params, keep)
    loop.train(state, small.CORPUS)  # sparser than the schedule asks for
    assert not any((state.masks[n] & ~mask).any() for n, mask in keep.items())


def test_a_run_that_diverges_as_its_masks_change_says_so():
    for name in ("set", "gradual"):
        with pytest.raises(divergence.Diverged, match="^step "):
            loop.train(new(name, sparsity_every=1, learning_rate=1e300, warmup_steps=0), small.CORPUS)


@pytest.mark.parametrize("density", train.DENSITIES)
def test_a_run_starts_as_sparse_as_it_says(density):
    state = new("static", density=density, sparsity=0.5)
    report = pruning.report(state.params, state.masks)
    assert abs(report.pruned.kept / report.pruned.total - 0.5) < 0.02
    assert all(state.params[n][mask].all() for n, mask in state.masks.items()) and list(state.masks) == NAMES
    experts = state.masks["layers.0.moe.w_up_EDF"].sum(axis=(1, 2))
    assert (len(set(experts)) == 1) == (density != "erdos_renyi_stack")


@pytest.mark.parametrize("change, message", [
    (lambda s: s.masks.popitem(), "it has 13 masks and 14 traces"),
    (lambda s: s.traces.clear(), "it has 14 masks and 0 traces"),
    (lambda s: s.masks.update({NAMES[0]: s.masks[NAMES[1]]}), r"masks\['layers.0.attention.w_q_DHP'\] is bool"),
    (lambda s: s.masks.update({NAMES[0]: s.params[NAMES[0]]}), "masks.* is float32"),
    (lambda s: s.traces.update({NAMES[0]: np.full(s.params[NAMES[0]].shape, np.nan)}), "trace/.* must be finite"),
    (lambda s: s.params.update({NAMES[0]: np.ones_like(s.params[NAMES[0]])}), f"mask/{NAMES[0]}: .* is not 0"),
    (lambda s: s.masks.update(b=np.ones(3, bool)), "unknown arrays: mask/b")])
def test_a_checkpoint_with_masks_that_do_not_fit_is_refused(tmp_path, change, message):
    state = new("snfs")
    change(state)
    checkpoint.save(tmp_path / "c.npz", state)
    with pytest.raises(checkpoint.CheckpointError, match=f"does not fit its own configuration: {message}"):
        checkpoint.load(tmp_path / "c.npz")


@pytest.mark.parametrize("fields, message", [
    (dict(dynamic="best", sparsity=0.5), "dynamic = 'best': must be one of static, set"),
    (dict(dynamic="rigl"), "dynamic = 'rigl': needs a sparsity above 0"),
    (dict(sparsity=1.0), "sparsity = 1.0: must be a share"), (dict(density="even"), "density = 'even': must be one of"),
    (dict(sparsity_end=1.5), "sparsity_end = 1.5: must be at most 1"),
    (dict(sparsity=0.5, dynamic="set", n_steps=100), "sparsity_every = 100: .* never change before step 75,")])
def test_a_sparse_run_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train.TrainConfig(**fields)
    assert masked.RULES.keys() == train.DYNAMICS.keys()
