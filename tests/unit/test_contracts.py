"""The contracts of all functions of the core: suffixes are true, dtypes stay, complex numbers pass, arguments are not
modified, and a backward can be called twice."""

import dataclasses
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.generation import sampling
from minimoe.moe import capacity, losses, routers, soft, telemetry
from minimoe.moe.routing import Tokens
from tests import shapes
from tests.unit.test_house import OF_REAL_NUMBERS, assert_none

ROOT = Path(minimoe.__file__).parent
CORE = [*(ROOT / "nn").glob("*.py"), *(ROOT / "moe").rglob("*.py"), ROOT / "model.py"]

B, S, PAST = 3, 10, 1
CONFIG = ModelConfig(vocab_size=13, d_model=24, n_layers=1, n_heads=6, n_kv_heads=2, d_hidden=11, n_experts=7,
                     top_k=5, max_sequence=S, capacity_factor=0.8)
CHANGED = {f"drop by {order}": dict(drop_order=order) for order in capacity.ORDERS} | {
    "dropless": dict(capacity_factor=None),
    "raw gates": dict(renormalize=False),
    "one expert per token": dict(top_k=1),
    "two layers": dict(n_layers=2),
    "wide heads": dict(d_head=6),
    "tied": dict(tie_embeddings=True),
    "dense": dict(n_experts=1, top_k=1),
    "shared experts": dict(n_shared_experts=2),
    "padded experts": dict(pad_experts=True),
    "first layer dense": dict(n_layers=2, first_dense_layers=1, d_dense=15),
    "every second layer": dict(n_layers=2, moe_every=2),
    "every layer dense": dict(first_dense_layers=1, d_dense=15),
    "no jitter": dict(router="switch", top_k=1, jitter=0),
    "groups": dict(router="sigmoid_bias", n_groups=7, top_groups=5, gate_scale=2.5),
}


def with_all_losses(router):
    """The fields of a router with each loss that it can have."""
    facts = routers.ROUTERS[router].FACTS
    fields = {f"{name}_coef": 0.1 for name in losses.LOSSES if name != "load" or facts.has_chances}
    fields |= dict(router=router, top_k=facts.top_k or CONFIG.top_k, n_devices=7)
    return fields | (dict(capacity_factor=None, top_k=4) if facts.soft else {})


CHANGED |= {router: with_all_losses(router) for router in routers.ROUTERS}
CASES = {name: dataclasses.replace(CONFIG, **fields) for name, fields in CHANGED.items()}
"""Name -> ModelConfig: every router, with every loss, and every option of the layer."""
TOKENS_BS, TARGETS_BS = np.random.default_rng(0).integers(0, 7, (2, B, S))
MASK_BS = np.arange(S) < np.array([[S - 2], [S], [S]])


def step(config, params=None, replays=None):
    """One training step on a batch with padding: (Losses, routings), cache and gradients."""
    params = gradcheck.random_params(config) if params is None else params
    out, cache = model.objective_forward(params, TOKENS_BS, TARGETS_BS, config, MASK_BS, training=True,
                                         rng=np.random.default_rng(0), replays=replays)
    return out, cache, model.objective_backward(1.0, cache)


def decode(config):
    """The last tokens of a batch, with the keys and values of the first ones as their past."""
    params = model.init_params(config)
    _, cache = model.model_forward(params, TOKENS_BS[:, :PAST], config)
    return lambda: model.model_forward(params, TOKENS_BS[:, PAST:], config, pasts=[
        (block.attention.k_BGMP, block.attention.v_BGMP) for block in cache.blocks])


def read(config, routing):
    """Everything that reads a Routing: eight copies of one, as if from eight layers; and the explorer."""
    telemetry.summarize([routing] * 8)
    telemetry.count_by_label(routing, np.arange(routing.n_tokens) % 2, 2)
    telemetry.drop_by_label(routing, np.arange(routing.n_tokens) % 2, 2)
    telemetry.churn(telemetry.chosen(routing), telemetry.chosen(routing))
    telemetry.coactivation(routing)
    telemetry.first_choice(routing)
    routing.one_hot()
    weights = parameters.scope(model.init_params(config), f"layers.{config.moe_layers[0]}.moe.")
    routers.ROUTERS[config.router].FACTS.explorer.numbers(routing, weights)


def widths(config):
    """The letters that have one size in a model."""
    facts = routers.ROUTERS[config.router].FACTS
    letters = dict(D=config.d_model, H=config.n_heads, G=config.kv_heads, P=config.head_width, V=config.vocab_size,
                   E=config.n_experts, F=config.d_hidden)
    if facts.soft:
        C = soft.slots_per_expert(config)
        letters |= dict(C=C, Z=config.n_experts * C)
    elif not facts.k_is_mean:  # else a token has as many experts as want it
        letters |= dict(K=config.top_k)
    if "dense" in config.layer_kinds:
        letters |= dict(J=config.dense_width)
    return letters | (dict(J=config.n_shared_experts * config.d_hidden) if config.n_shared_experts else {})


def assigned(routing):
    """The letters that have one size in a layer."""
    letters = dict(A=len(routing.kept_A), N=int(routing.kept_A.sum()), C=routing.capacity, K=routing.n_ranks, L=8)
    return {letter: size for letter, size in letters.items() if size is not None}


def share(config, routings):
    """What happens once per step, not once per micro-batch: loads of all groups, and weights without a gradient."""
    count_LE = np.array([r.count_E for r in routings])
    biased = CASES["sigmoid_bias"]
    model.after_step(model.init_params(biased), count_LE, biased)
    (logit_TV, _), _ = model.model_forward(model.init_params(config), TOKENS_BS, config, MASK_BS)
    load_LE = count_LE / count_LE.sum(axis=1, keepdims=True)
    n_real = int(MASK_BS.sum())
    model.losses_forward(logit_TV, routings, TARGETS_BS, config, MASK_BS, losses.Step(n_real, load_LE, n_real))


def runs(config):
    """(sizes, function) of everything that the core does with a configuration."""
    params, (_, routings), whole = model.init_params(config), step(config)[0], widths(config) | dict(
        B=B, S=S, T=B * S, M=S)
    trained = whole | assigned(routings[0]) if len(routings) == 1 else whole
    yield trained, lambda: (step(config), [read(config, r) for r in routings[:1]])
    if config is CASES["groups"]:
        large = {name: 400 * w if "router" in name else w for name, w in gradcheck.random_params(config).items()}
        yield whole, lambda: step(config, large)
    if config is CONFIG:
        yield trained, lambda: step(config, replays=routings)
        yield whole, lambda: (Tokens.anonymous(MASK_BS.ravel()), share(config, routings))
        yield whole, lambda: model.forward(params, TOKENS_BS, config, MASK_BS)
        yield whole, lambda: batches.loss_and_grads(params, TOKENS_BS, TARGETS_BS, config, MASK_BS,
                                                  rng=np.random.default_rng(0))
        yield whole | dict(S=S - PAST, T=B * (S - PAST)), decode(config)
        yield widths(config), lambda: sampling.generate(params, config, TOKENS_BS[0, :2], 4)


@pytest.fixture(scope="module")
def traced():
    """What the tracer finds in every case: (lies, names seen)."""
    lies, seen = {}, set()
    for config in (CONFIG, *CASES.values()):
        for sizes, run in runs(config):
            with shapes.Tracer(CORE, sizes) as tracer:
                run()
            lies, seen = tracer.lies | lies, seen | tracer.seen
    return lies, seen


def test_the_sizes_differ():
    """But for M, which is S where there is no past."""
    (_, routings), _, _ = step(CONFIG)
    layer = widths(CASES["shared experts"]) | assigned(routings[0]) | dict(B=B)
    whole = dict(S=S, T=B * S)
    for letters in (layer | whole, layer | dict(S=S - PAST, T=B * (S - PAST), M=S), widths(CASES["soft"]) | whole):
        assert len(set(letters.values())) == len(letters)


def test_every_suffix_is_true(traced):
    lies, _ = traced
    assert_none(f"{place}: {lie}" for place, lie in lies.items())


def test_every_suffix_is_looked_at(traced):
    """A name that no run reaches is not checked: let `runs` reach it."""
    _, seen = traced
    names = set().union(*(shapes.suffixed_locals(file) for file in CORE))
    assert_none(f"{file}:{line}: {name}" for file, line, name in names - seen)


def lies_of(body, name="f"):
    """What the tracer finds in a function of x_BSD, where B, S, T, D = 2, 3, 6, 4."""
    space = {"np": np}
    exec(compile(f"def {name}(x_BSD):\n" + textwrap.indent(body, "    "), "made up", "exec"), space)
    with shapes.Tracer(["made up"], dict(B=2, S=3, T=6, D=4)) as tracer:
        space[name](np.zeros((2, 3, 4)))
    return tracer.lies


def test_the_tracer_passes_the_truth_and_catches_a_lie():
    for truth in (
            "x_TD = x_BSD.reshape(6, 4)\nreturn x_TD", "'Returns y_TD, cache.'\nreturn x_BSD.reshape(6, 4), None",
            "mask_BS = None", "some_N, x_ND = np.arange(5), np.zeros((5, 4))",
            "sum_BS1 = x_BSD.sum(axis=2, keepdims=True)",
            "return {'layers.0.w_DF': np.zeros((4, 9)), 'layers.1.w_DF': np.ones((4, 9))}"):
        assert not lies_of(truth)
    for lie in (
            "x_DT = x_BSD.reshape(6, 4)", "x_TD = x_BSD", "rows_B = len(x_BSD)", "sum_BS1 = x_BSD",
            "some_N, x_ND = np.arange(5), np.zeros((6, 4))", "x_TD = x_BSD\nx_TD = x_TD.reshape(6, 4)",
            "'Returns y_BD, cache.'\nreturn x_BSD[0], None", "'Gradient of x_BD: made up.'\nreturn x_BSD",
            "return [{'layers.0.w_BD': x_BSD[0]}]", "return {'layers.0.w_DF': np.zeros((4, 9)), 'b_F': np.ones(8)}"):
        assert len(lies_of(lie)) == 1
    assert not lies_of("return x_BSD[0]", "first_SD")
    assert lies_of("return x_BSD[0]", "first_BD")


def test_the_operations_used_elsewhere_exist():
    names = {name for file in CORE for name in shapes.functions(file)}
    assert_none(name for name in shapes.ELSEWHERE if not {name, f"{name}_forward"} & names)


OF_ANY_TYPE = {"Tokens.weight_T", "Routing.load_E", "mixed", "floats", *OF_REAL_NUMBERS["moe/linear_assignment.py"]}
"""Functions whose numbers choose, count or weigh, in float64; what comes of them gets the type of the inputs."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_parameters_is_the_type_of_whatever_a_function_returns(dtype):
    seen, other = set(), []
    files = set(map(str, CORE))

    def profile(frame, event, result):
        code = frame.f_code
        if event == "return" and code.co_filename in files and code.co_name not in OF_ANY_TYPE and (
                code.co_qualname not in OF_ANY_TYPE):
            found = [part for inside in ({"": result}, *shapes.containers(result)) for part in inside.values()
                     if getattr(part, "dtype", np.dtype(int)).kind in "fc"]
            seen.update(code.co_name for _ in found[:1])
            other.extend(f"{code.co_qualname} returns {part.dtype}" for part in found if part.dtype != dtype)

    for config in CASES.values():
        params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
        sys.setprofile(profile)
        try:
            step(config, params)
            model.forward(params, TOKENS_BS, config)
        finally:
            sys.setprofile(None)
    assert_none(other)
    assert {"objective_forward", "keep_backward", "chance_backward", "soft_backward", "dense_backward"} <= seen


def test_complex_numbers_pass_through_the_forward():
    """Turned by a tiny angle, the parameters turn the objective; not turned, they leave it what it was."""
    for config in CASES.values():
        params = gradcheck.random_params(config)
        plain, still, turned = (model.objective_forward({name: w * factor for name, w in params.items()}, TOKENS_BS,
                                                        TARGETS_BS, config)[0][0] for factor in (1, 1 + 0j, 1 + 1e-20j))
        np.testing.assert_allclose([still.ce, *still.auxiliary.values(), still.total],
                                   [plain.ce, *plain.auxiliary.values(), plain.total], rtol=1e-12)
        assert np.imag(still.total) == 0 != np.imag(turned.total)


def test_functions_of_real_numbers_get_no_complex_ones():
    seen, given = set(), []

    def profile(frame, event, _):
        name = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and name in functions:
            seen.add(name)
            given.extend(name for array in parameters.arrays_in(dict(frame.f_locals)) if array.dtype.kind == "c")

    functions = {(name, str(ROOT / file)) for file, of_file in OF_REAL_NUMBERS.items() for name in of_file}
    for name in ("sigmoid_bias", "base", "sinkhorn"):
        config = CASES[name]
        params = {name: w * (1 + 1e-20j) for name, w in gradcheck.random_params(config).items()}
        sys.setprofile(profile)
        try:
            (_, routings), _ = model.objective_forward(params, TOKENS_BS, TARGETS_BS, config, MASK_BS, training=True,
                                                       rng=np.random.default_rng(0))
            model.after_step(gradcheck.random_params(config), [r.count_E for r in routings], config)
        finally:
            sys.setprofile(None)
    assert_none(map(str, given))
    assert seen == functions


def test_nothing_that_is_passed_in_is_changed_and_backward_can_be_called_twice():
    """Of every function of the core, private ones too: its arguments before the call and after it.

    But for `out`, which is there to be written to, as NumPy's is.
    """
    before, changed, files = {}, [], set(map(str, CORE))

    def profile(frame, event, _):
        code = frame.f_code
        if code.co_filename in files and event == "call":
            given = {name: value for name, value in frame.f_locals.items() if name != "out"}
            before[frame] = [(array, array.copy()) for array in parameters.arrays_in(given)]
        elif frame in before and event == "return":
            changed.extend(code.co_qualname for array, copy in before.pop(frame) if array.tobytes() != copy.tobytes())

    for case, config in CASES.items():
        sys.setprofile(profile)
        try:
            _, cache, first = step(config)
        finally:
            sys.setprofile(None)
        second = model.objective_backward(1.0, cache)
        assert all(np.array_equal(first[name], second[name]) for name in first), case
    assert_none(changed)
