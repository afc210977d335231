"""The checker itself is checked: it catches a one-line bug in each backward, including bugs that weaker checks miss."""

import inspect
import re
from importlib import import_module
from pkgutil import walk_packages

import numpy as np
import pytest

from minimoe import gradcheck, model, moe, nn
from minimoe.gradcheck import checks
from minimoe.nn import ops

CASES = gradcheck.layer_cases()
LAYERS = [CASES[name] for name in (
    "softmax_topk, K=2, drop by position", "softmax_topk, 2 shared experts", "dense", "soft, K=2",
    "switch, K=1, drop by position", "noisy_topk, K=2, drop by position", "gshard, K=2, dropless",
    "st_moe, K=2, raw, dropless", "sigmoid_bias, 1 group of 2", "expert_choice, K=2, dropless",
    "sinkhorn, K=2, dropless", "base, K=1, dropless", "hash, K=2, dropless", "random, K=2, dropless",
    "uniform, K=2, dropless")]
"""Few set-ups that use every backward in moe/."""

BUGS = {
    "nn.ops.linear_backward": ("@ dy_TF", "@ dy_TF[::-1]"),
    "nn.ops.softmax_backward": (".sum(axis=-1", ".mean(axis=-1"),
    "nn.ops.sigmoid_backward": ("((1 + ", "((2 + "),
    "nn.ops.log_sigmoid_backward": ("(-x_TE)", "(x_TE)"),
    "nn.ops.softplus_backward": ("sigmoid_forward", "softplus_forward"),
    "nn.ops.rmsnorm_backward": ("dx_TD -= ", "dx_TD += "),
    "nn.ops.silu_gate_backward": ("dgate_TF += ", "dgate_TF -= "),
    "nn.ops.swiglu_backward": ("dx_TD += dup_TF", "dx_TD = dup_TF"),
    "nn.ops.embedding_backward": ("dx_TD[order_T]", "dx_TD"),
    "nn.ops.cross_entropy_backward": ("-= 1", "-= 2"),
    "nn.normal.normal_cdf_backward": ("np.exp(-0.5", "np.exp(-1.0"),
    "nn.attention.rope_backward": ("sin_SP, 1)", "sin_SP, -1)"),
    "nn.attention.attend_backward": ("1 / math.sqrt(", "1 * math.sqrt("),
    "nn.attention.split_heads_backward": ("dq_BHSP.swapaxes(1, 2)", "dq_BHSP"),
    "nn.attention.merge_heads_backward": ("dmix_BSHP.swapaxes(1, 2)", "dmix_BSHP.reshape(B, H, S, P)"),
    "nn.attention.attention_backward": ("dx_BSD += dx_k_BSD", "pass"),
    "moe.gates.gates_backward": (".sum(axis=1", ".mean(axis=1"),
    "moe.gates.shares_backward": ("(dgate_TK, ", "(dgate_TK[::-1], "),
    "moe.routers.softmax_topk.backward": ("grad.dlogit_TE + ", ""),
    "moe.routers.switch.backward": ("dx_TD * ", "dx_TD / "),
    "moe.routers.noisy_topk.backward": ("dlogit_TE = dlogit_TE + dthreshold_TE", "pass"),
    "moe.routers.noisy_topk.chance_backward": ("return dclean_TE, -", "return dclean_TE, "),
    "moe.routers.gshard.backward": (".backward(grad,", ".backward(grad._replace(dgate_A=grad.dgate_A / 2),"),
    "moe.routers.st_moe.backward": (".backward(grad,", ".backward(grad._replace(dlogit_TE=0 * grad.dlogit_TE),"),
    "moe.routers.sigmoid_bias.backward": ("dlog_TE += ", "dlog_TE -= "),
    "moe.routers.expert_choice.backward": ("+= grad.dgate_A", "= grad.dgate_A"),
    "moe.routers.sinkhorn.backward": ("grad.dlogit_TE + ", ""),
    "moe.routers.base.backward": ("grad.dlogit_TE + ", ""),
    "moe.routers.hash_layers.backward": ("zeros_like", "ones_like"),
    "moe.routers.random_routing.backward": ("hash_layers.backward(grad, cache)", "(cache, {})"),
    "moe.routers.uniform.backward": ("hash_layers.backward(grad, cache)", "(cache, {})"),
    "moe.capacity.keep_backward": ("np.zeros(", "np.ones("),
    "moe.dispatch.dispatch_backward": ("drows_ND,", "drows_ND[::-1],"),
    "moe.dispatch.combine_backward": ("dy_ND *= ", "dy_ND /= "),
    "moe.experts.experts_backward": ("] = 0", "] = 1"),
    "moe.dense.dense_backward": ("return dx_TD,", "return dy_TD,"),
    "moe.soft.soft_backward": ("dx_BSD += unit", "dx_BSD = unit"),
    "moe.soft.unit_backward": (".sum(axis=-1", ".mean(axis=-1"),
    "moe.losses.balance.balance_backward": ("dloss * ", ""),
    "moe.losses.balance.sequence_backward": ("dloss * ", ""),
    "moe.losses.balance.device_backward": ("balance_backward(dloss,", "balance_backward(dloss / 2,"),
    "moe.losses.scores.z_backward": (" * 2 * ", " * "),
    "moe.losses.scores.entropy_backward": ("(dloss * ", "(-dloss * "),
    "moe.losses.variation.variation_backward": (" - along", ""),
    "moe.losses.variation.importance_backward": ("expert_A]", "expert_A[::-1]]"),
    "moe.losses.variation.load_backward": ("return ", "return 2 * "),
    "moe.losses.auxiliary_backward": ("+ loss.backward(", "- loss.backward("),
    "moe.feed_forward.kind_backward": ("(dy_TD, ", "(2 * dy_TD, "),
    "moe.layer.moe_backward": ("dx_TD + dx_router_TD", "dx_TD"),
    "model.block_backward": ("dx_TD + dstream_TD", "dstream_TD"),
    "model.model_backward": ("reversed(", "list("),
    "model.losses_backward": ("dtotal / len(", "dtotal * len("),
    "model.objective_backward": ("losses_backward(dtotal", "losses_backward(2 * dtotal"),
}
"""Function of minimoe -> (a piece of its text, what a bug makes of the last such piece)"""


class Wrong(Exception):
    """A check that found an error; those after it need not run."""


def is_right(module, monkeypatch):
    """Whether the checker finds no error in the part of the code that a module belongs to."""
    if module.startswith("nn."):
        monkeypatch.setattr(checks, "check_pair", until_wrong(gradcheck.check_pair))
        try:
            return bool(gradcheck.check_ops())
        except Wrong:
            return False
    if module == "model":
        return gradcheck.check_model(most=1).ok
    own_first = sorted(LAYERS, key=lambda config: not module.partition(".routers.")[2].startswith(config.router))
    return all(gradcheck.check_layer(config).ok for config in own_first)


def until_wrong(check):
    def checked(*arguments):
        if not check(*arguments).ok:
            raise Wrong
    return checked


def put_in(monkeypatch, path, text, bug):
    module, function = import_module(f"minimoe.{path.rpartition('.')[0]}"), path.rpartition(".")[2]
    before, found, after = inspect.getsource(getattr(module, function)).rpartition(text)
    assert found
    space = dict(vars(module))
    exec(before + bug + after, space)
    monkeypatch.setattr(getattr(module, function), "__code__", space[function].__code__)  # wherever it is used


def test_without_a_bug_the_layers_are_right(monkeypatch):
    """So are the operations in test_checks, and the models in test_models."""
    assert is_right("moe.layer", monkeypatch)


@pytest.mark.parametrize("path", BUGS)
def test_a_bug_is_caught(monkeypatch, path):
    put_in(monkeypatch, path, *BUGS[path])
    assert not is_right(path.rpartition(".")[0], monkeypatch)


def test_every_backward_has_a_bug():
    modules = [import_module(found.name) for package in (nn, moe)
               for found in walk_packages(package.__path__, package.__name__ + ".")]
    assert BUGS.keys() == {f"{module.__name__}.{name}".removeprefix("minimoe.") for module in [*modules, model]
                           for name, value in vars(module).items()
                           if re.fullmatch(r"(\w+_)?backward", name) and value.__module__ == module.__name__}


def test_a_plain_sum_hides_a_wrong_softmax(monkeypatch):
    """Each row sums to 1 whatever x is, so the gradient of a plain sum is 0, and 0 with a wrong sign too."""
    put_in(monkeypatch, "nn.ops.softmax_backward", "return p_TE", "return -p_TE")
    x_TE, random_TE = np.random.default_rng(0).normal(size=(2, 11, 4))
    for weight_TE, hidden in ((np.ones((11, 4)), True), (random_TE, False)):
        dx_TE = ops.softmax_backward(weight_TE, ops.softmax_forward(x_TE)[1])
        report = gradcheck.compare("softmax", lambda arrays, weight_TE=weight_TE: (
            weight_TE * ops.softmax_forward(arrays["x_TE"])[0]).sum(), {"x_TE": x_TE}, {"x_TE": dx_TE})
        assert report.ok == hidden


def test_gains_of_one_as_a_model_starts_with_hide_that_a_gain_is_missing(monkeypatch):
    put_in(monkeypatch, "nn.ops.rmsnorm_backward", "dx_TD = dy_TD * ", "dx_TD = dy_TD + 0 * ")
    assert not gradcheck.check_model(most=1).ok
    monkeypatch.setattr(gradcheck.models, "random_params", lambda config, seed: model.init_params(config, seed, float))
    assert gradcheck.check_model(most=1).ok
