"""The same weights in other people's code: Mixtral of the transformers library; PyTorch's autograd, clipping and AdamW.

Where the two differ on purpose, the test names both conventions.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minimoe import batches, gradcheck, model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import optimizer
from tests.integration import other_models

CONFIG = ModelConfig(vocab_size=29, d_model=24, n_layers=3, n_heads=6, n_kv_heads=2, d_hidden=7, n_experts=5, top_k=2,
                     rope_theta=100.0, norm_eps=1e-3, max_sequence=11, balance_coef=0.0, z_coef=0.0)
MIXTRALS = {
    "grouped heads": CONFIG,
    "one key head": replace(CONFIG, n_kv_heads=1),
    "a key head each": replace(CONFIG, n_kv_heads=None),
    "tied": replace(CONFIG, tie_embeddings=True),
    "three of five experts": replace(CONFIG, top_k=3),
    "all experts": replace(CONFIG, top_k=5),
    "dense": replace(CONFIG, n_experts=1, top_k=1),
    "with its balance loss": replace(CONFIG, n_layers=1, balance_coef=0.5),  # the same as ours for one layer alone
}
WITH_LOSSES = replace(CONFIG, balance_coef=0.5, z_coef=0.3)
NOT_MIXTRALS = {
    "balance loss": replace(CONFIG, balance_coef=0.5),
    "z-loss": replace(CONFIG, z_coef=0.3),
    "raw gates": replace(WITH_LOSSES, renormalize=False),
    "one expert per token": replace(WITH_LOSSES, top_k=1),
    "capacity": replace(WITH_LOSSES, capacity_factor=0.6),  # E * C = 40 < K * T = 66: somebody is dropped
    "capacity, raw gates": replace(WITH_LOSSES, capacity_factor=0.6, renormalize=False),
}
TRAINING = TrainConfig(n_steps=8, warmup_steps=3, learning_rate=0.03, min_learning_rate=0.01, weight_decay=0.5,
                       beta1=0.8, beta2=0.95, adam_eps=1e-3, clip_norm=2.0)


def each(configs):
    return pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in configs.items()])


def made_up(config, dtype=np.float64):
    """Random params (gains too), and tokens_BS and targets_BS of three sequences."""
    rng = np.random.default_rng(0)
    start = model.init_params(config, dtype=dtype)
    params = {name: (array + 0.3 * rng.normal(size=array.shape)).astype(dtype) for name, array in start.items()}
    return params, *rng.integers(0, config.vocab_size, (2, 3, config.max_sequence))


def run_mixtral(params, tokens_BS, targets_BS, config, mask_BS=None):
    """The library's output, its gradients under our names, and (logit_TE, gate_TK, expert_TK) of each layer."""
    leaves, decisions = other_models.leaves_of(params), []
    with other_models.Float64():
        net = other_models.mixtral(config)
        for block in net.model.layers:
            block.mlp.gate.register_forward_hook(lambda gate, inputs, output: decisions.append(
                [part.detach().numpy() for part in output]))
        output = other_models.run_mixtral(net, leaves, tokens_BS, targets_BS, config, mask_BS)
    return output, other_models.grads_of(output.loss, leaves), decisions


def by_name(losses):
    """Every number of a Losses."""
    return {"ce": losses.ce, "total": losses.total} | losses.auxiliary


def assert_close(ours, theirs, tolerance=1e-12):
    """Two dicts of arrays or numbers are the same up to rounding."""
    assert {n: np.shape(array) for n, array in ours.items()} == {n: np.shape(array) for n, array in theirs.items()}
    assert {n: error for n in ours if not (error := gradcheck.error(ours[n], theirs[n])) < tolerance} == {}


@each(MIXTRALS)
@pytest.mark.parametrize("lengths", [None, [[11], [4], [7]]], ids=["whole", "padded"])
def test_routing_logits_loss_and_every_gradient_are_mixtrals(config, lengths):
    """Padding is left out; without any there is no mask."""
    params, tokens_BS, targets_BS = made_up(config)
    mask_BS = None if lengths is None else np.arange(config.max_sequence) < np.array(lengths)
    real_T = slice(None) if lengths is None else mask_BS.ravel()
    logits_BSV, routings = model.forward(params, tokens_BS, config, mask_BS)
    ours, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, config, mask_BS)
    theirs, their_grads, decisions = run_mixtral(params, tokens_BS, targets_BS, config, mask_BS)
    assert_close({"logits": logits_BSV[mask_BS]}, {"logits": theirs.logits.detach().numpy()[mask_BS]})
    assert_close(grads | {"loss": ours.total}, their_grads | {"loss": theirs.loss.item()})
    for routing, (logit_TE, gate_TK, expert_TK) in zip(routings, decisions, strict=True):
        np.testing.assert_array_equal(routing.expert_A, expert_TK[real_T].ravel())
        assert_close({"gate": routing.gate_A, "logit": routing.logit_TE[real_T]},
                     {"gate": gate_TK[real_T].ravel(), "logit": logit_TE[real_T]})


def test_float32_agrees_with_the_library_untouched():
    config = replace(CONFIG, d_hidden=8)  # the library's grouped matrix product wants rows of whole 16 bytes
    params, tokens_BS, targets_BS = made_up(config, np.float32)
    leaves = other_models.leaves_of(params)
    net = other_models.mixtral(config, experts=None)
    theirs = other_models.run_mixtral(net, leaves, tokens_BS, targets_BS, config)
    ours, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, config)
    their_grads = other_models.grads_of(theirs.loss, leaves)
    assert_close(grads | {"loss": ours.total}, their_grads | {"loss": theirs.loss.item()}, 1e-5)


def test_balance_is_a_mean_over_layers_and_mixtrals_is_pooled_over_them():
    # Layer 0 sends every token to expert 0, with p = 0.9, 0.1; layer 1 to expert 1, with p = 0.1, 0.9.
    # Mean over layers: E sum f P = 2 * (1 * 0.9 + 0 * 0.1) = 1.8 in each.
    # Pooled: f = P = 1/2, 1/2 and E sum f P = 2 * (1/4 + 1/4) = 1, as if nothing had collapsed.
    config = replace(CONFIG, n_layers=2, n_experts=2, top_k=1, norm_eps=1e-30)
    params, tokens_BS, targets_BS = made_up(config)
    params["embed.w_VD"] = np.ones_like(params["embed.w_VD"])  # 1 is its own norm: a router adds up its columns
    for i, p_E in enumerate([[0.9, 0.1], [0.1, 0.9]]):
        params[f"layers.{i}.attention.w_o_HPD"] *= 0
        params[f"layers.{i}.moe.w_down_EFD"] *= 0
        params[f"layers.{i}.moe.gain_D"] = np.ones(config.d_model)
        params[f"layers.{i}.moe.w_router_DE"] = np.tile(np.log(p_E) / config.d_model, (config.d_model, 1))
    ours, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, config)
    theirs, *_ = run_mixtral(params, tokens_BS, targets_BS, config)
    np.testing.assert_allclose(ours.balance, 1.8, rtol=1e-12)
    np.testing.assert_allclose(theirs.aux_loss.item(), 1.0, rtol=1e-12)


@each(NOT_MIXTRALS)
def test_what_mixtral_lacks_is_as_in_plain_pytorch(config):
    params, tokens_BS, targets_BS = made_up(config)
    leaves = other_models.leaves_of(params)
    theirs = other_models.plain_losses(leaves, tokens_BS, targets_BS, config)
    ours, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, config)
    assert_close(by_name(ours), {name: loss.item() for name, loss in by_name(theirs).items()})
    assert_close(grads, other_models.grads_of(theirs.total, leaves))


def pytorchs_adamw(leaves):
    """AdamW with decay on matrices alone."""
    matrices = [leaf for leaf in leaves.values() if leaf.ndim > 1]
    gains = [leaf for leaf in leaves.values() if leaf.ndim == 1]
    return torch.optim.AdamW([{"params": matrices}, {"params": gains, "weight_decay": 0.0}], eps=TRAINING.adam_eps,
                             betas=(TRAINING.beta1, TRAINING.beta2), weight_decay=TRAINING.weight_decay)


def pytorchs_step(adamw, step):
    for group in adamw.param_groups:
        group["lr"] = optimizer.learning_rate(step, TRAINING)
    adamw.step()


def test_clipping_and_adamw_are_pytorchs():
    rng = np.random.default_rng(0)
    shapes = {"matrix": (190, 181), "stack": (3, 4, 5), "gain": (6,)}  # the matrix is updated in two chunks
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    leaves = other_models.leaves_of(params)
    adamw, moments = pytorchs_adamw(leaves), optimizer.start_moments(params)
    for step, size in enumerate([1e8, 1e-3, 1e9, 1e-2, 1e7]):  # all that are clipped dwarf PyTorch's norm + 1e-6
        grads = {name: size * rng.normal(size=shape) for name, shape in shapes.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        their_norm = torch.nn.utils.clip_grad_norm_(leaves.values(), TRAINING.clip_norm)
        pytorchs_step(adamw, step)
        norm = optimizer.global_norm(grads)
        optimizer.adamw_update(params, grads, moments, step, TRAINING, optimizer.clip_scale(norm, TRAINING.clip_norm))
        assert_close({"norm": norm}, {"norm": their_norm.item()})
        assert_close(params, {name: leaf.detach().numpy() for name, leaf in leaves.items()})


def test_training_goes_as_with_mixtral_and_pytorchs_adamw():
    params, tokens_BS, targets_BS = made_up(CONFIG)
    leaves = other_models.leaves_of(params)
    adamw, moments = pytorchs_adamw(leaves), optimizer.start_moments(params)
    with other_models.Float64():
        net = other_models.mixtral(CONFIG)
        for step in range(TRAINING.n_steps):
            theirs = other_models.run_mixtral(net, leaves, tokens_BS, targets_BS, CONFIG).loss
            adamw.zero_grad()
            theirs.backward()
            pytorchs_step(adamw, step)
            ours, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, CONFIG)
            optimizer.adamw_update(params, grads, moments, step, TRAINING)
            assert_close({"loss": ours.ce}, {"loss": theirs.item()}, 1e-10)
    assert_close(params, {name: leaf.detach().numpy() for name, leaf in leaves.items()}, 1e-10)
