"""A model with masks: what they save, and the FLOPs of its training by the formulas of the papers.

    f_D   FLOPs of a forward pass of the dense model        f_S   those of the sparse one, on a machine that skips zeros

A training step has three times the FLOPs of its forward pass: once more for the gradients of the inputs, and once more
for those of the weights.  NumPy also multiplies by the zeros, so it really computes 3 f_D in every step.
"""

import numpy as np

from minimoe import model, require
from minimoe.config import ModelConfig, TrainConfig
from minimoe.cost import ours, sheet
from minimoe.sparsity import masks, matrices, savings, schedules


def record(mask_of, config):
    """What the masks of a model save: `savings.record`, with the FLOPs per token of a full context."""
    require.record("config", config, ModelConfig)
    work = sheet.flops_of_parts(ours.architecture(config), config.max_sequence, causal=False)
    return savings.record(mask_of, config, sum(work.values()))


def training_flops(dense, sparse, train_config):
    """FLOPs per token of a training step, the mean over a run whose masks change in this way.

        static, set      3 f_S
        rigl             (3 f_S dT + 2 f_S + f_D) / (dT + 1): one dense gradient in dT + 1 steps
        snfs             2 f_S + f_D: one in every step             [all: RigL, arXiv:1911.11134, app. H]
        gradual          3 (f_D - s_t (f_D - f_S) / s_f), where s_t is the share of zeros at each step
        movement         2 of these and one f_D: its scores need the dense gradient

    Args:
        dense: f_D, per token.
        sparse: f_S, with the final share of zeros.
        train_config: TrainConfig; a dense run if its sparsity is 0.
    """
    require.record("train_config", train_config, TrainConfig)
    for name, flops in (("dense", dense), ("sparse", sparse)):
        require.number(name, flops)
    every, dynamic = train_config.sparsity_every, train_config.dynamic
    if train_config.sparsity == 0:
        return 3 * dense
    if dynamic in ("gradual", "movement"):
        now = dense - _mean_progress(train_config) * (dense - sparse)
        return 3 * now if dynamic == "gradual" else 2 * now + dense
    if dynamic == "rigl":
        return (3 * sparse * every + 2 * sparse + dense) / (every + 1)
    return 2 * sparse + dense if dynamic == "snfs" else 3 * sparse


def sparse_flops(config, sparsity):
    """(f_D, f_S) of a model, per token: dense, and with this share of zeros in attention and feed-forward networks."""
    masks.check_sparsity(sparsity)
    found = record({}, config)["forward_flops_per_token"]["ideal"]
    none_kept = {name: np.zeros(model.weights(config)[name].shape, bool) for name in matrices.names(config)}
    return found, found - sparsity * savings.skipped_flops(none_kept, config)


def pruning_flops(config, method, n_tokens):
    """FLOPs of pruning a dense model once: the calibration text's forward passes, and all other matrix products.

        magnitude 0;  wanda 2 f_D T;  neurons by taylor 3 f_D T
        sparsegpt     2 f_D T, and of each matrix 2 T D^2 for H, 2 D^3 for its inverse, D^2 F for the updates

    T tokens go through each block twice, before and after it is pruned.  A closed form, not a count.
    """
    dense, _ = sparse_flops(config, 0)
    work = {"wanda": 2, "sparsegpt": 2, "neurons": 3}.get(method, 0) * dense * n_tokens
    if method == "sparsegpt":
        for name in matrices.names(config):
            n, d, f = matrices.shape(name, model.weights(config)[name].shape)
            work += n * (2 * n_tokens * d**2 + 2 * d**3 + d**2 * f)
    return work


def _mean_progress(train_config):
    """Mean over the steps of a run of the share of the final zeros that exist in the step's forward pass."""
    last, every, total = train_config.last_mask_step, train_config.sparsity_every, 0.0
    for step in range(train_config.n_steps):
        changed = min(step // every * every, last)
        total += schedules.cubic(changed, 0, last, 1.0) if changed else 0.0
    return total / train_config.n_steps
