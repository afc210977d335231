"""One small model, its variants, and one short run, which the tests of training share."""

import math
from dataclasses import replace

import numpy as np

from minimoe import model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe.routers import ROUTERS
from minimoe.training import corpus, data, loop, optimizer

MOE = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                  max_sequence=8)
DENSE = replace(MOE, n_experts=1, top_k=1)
BY_ROUTER = {name: replace(MOE, router=name, top_k=router.FACTS.top_k or 2) for name, router in ROUTERS.items()}
RANDOM_DROPS = replace(MOE, capacity_factor=1.0, eval_capacity_factor=1.0, drop_order="random")
TRAINING = TrainConfig(n_steps=6, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=3, eval_batches=4,
                       record_every=2)
TEXT = data.build(corpus.clusters(length=300), 8)


def new(config=MOE, text=TEXT, **training):
    """A run before its first step."""
    return loop.new_state(config, replace(TRAINING, **training), text)


def trained(config=MOE, **training):
    """A run after its last step."""
    return loop.train(new(config, **training), TEXT)


def in_float64(state):
    """The same run before its first step, with more digits."""
    params = {name: array.astype(float) for name, array in state.params.items()}
    return replace(state, params=params, moments=optimizer.start_moments(params))


def first_batches(n):
    """The batches that a run draws first, and the generator as it is then."""
    rng = np.random.default_rng(TRAINING.seed)
    return [data.sample(TEXT.train, rng, TRAINING.batch, TRAINING.sequence) for _ in range(n)], rng


def numbers(state):
    """All that a run has made, but for the time that it took, in a form that == compares bit for bit."""
    history = {name: values for name, values in state.history.items() if name != "seconds"}
    trees = enumerate((state.params, *state.moments, history))
    arrays = {(i, name): np.asarray(array).tobytes() for i, tree in trees for name, array in tree.items()}
    return state.step, state.rng.bit_generator.state, arrays


def slow_ce(params, config, tokens_BS, targets_BS):
    """Mean of -log softmax(logit)[target], token by token."""
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    rows = zip(logits_BSV.reshape(-1, config.vocab_size).tolist(), targets_BS.ravel().tolist(), strict=True)
    return np.mean([math.log(sum(map(math.exp, logits))) - logits[target] for logits, target in rows])
