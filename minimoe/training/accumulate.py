"""The gradients of one optimiser step: those of its micro-batches, averaged."""

import numpy as np

from minimoe import model


def gradients(params, batches, config, rng, look=None):
    """Mean gradients of the objective over micro-batches.

    batches: list of Batch.  rng: for what training leaves to chance.  look: called with the Losses and the cache of
    each micro-batch before its backward.  With `global_balance` the balance loss multiplies each micro-batch's
    probabilities with the load of all, which has to be known first, so that all forward passes are held at once; else
    one at a time is.  Returns a list of Losses, a list of routings, and the gradients.
    """
    all_losses, all_routings, grads, load_LE = [], [], {}, None
    passes = (model.model_forward(params, batch.tokens_BS, config, training=True, rng=rng) for batch in batches)
    if config.global_balance and config.moe_layers:
        held = list(passes)
        count_LE = sum(np.array([r.count_E for r in routings]) for (_, routings), _ in held)
        load_LE, passes = count_LE / count_LE.sum(axis=1, keepdims=True), iter(held)
    for batch in batches:
        (logit_TV, routings), cache = next(passes)
        losses, losses_cache = model.losses_forward(logit_TV, routings, batch.targets_BS, config, load_LE=load_LE)
        if look is not None:
            look(losses, (cache, losses_cache))
        one = model.objective_backward(1 / len(batches), (cache, losses_cache))
        del logit_TV, cache, losses_cache  # before the next forward pass fills its own
        grads = {name: grads[name] + grad for name, grad in one.items()} if grads else one
        all_losses.append(losses)
        all_routings.append(routings)
    return all_losses, all_routings, grads
