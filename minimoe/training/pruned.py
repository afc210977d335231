"""A new run that starts from a pruned, trained model, and can be trained to recover.

Its learning rate rises to the peak of the earlier run and falls once more, as in learning rate rewinding
[arXiv:2003.02389]; its masks stay.
"""

import copy
from dataclasses import replace

import numpy as np

from minimoe import require
from minimoe.config import fields
from minimoe.sparsity import cuts, matrices, pruning
from minimoe.training import data, loop

CALIBRATION = 32
"""Number of sequences of the training text that a method sees."""
MOST_TOKENS = 1_000_000
"""Maximum number of calibration tokens, since all of them go through the model at once."""


def prune(state, corpus, method, training, calibration=CALIBRATION, **options):
    """A run before its first step that starts with the pruned model, and the Cut.

    Args:
        state: TrainState of the trained run.
        corpus: the Corpus that it was trained on.
        method, options: see `cuts.cut`.
        training: TrainConfig of the new run, such as `recovery` returns.
        calibration: number of sequences of the training text to calibrate on.
    Raises ValueError for a different corpus, too little calibration text, and what `cuts.cut` refuses.
    """
    loop.check_text(state, corpus)
    text = None, None
    if cuts.needs_text(method, options.get("score")):
        text = calibration_text(state, corpus, method, calibration)
    found = cuts.cut(state.params, state.model_config, method, *text, old_masks=state.masks, **options)
    new = loop.new_state(found.config, training, corpus, found.params, found.masks)
    new.rng = copy.deepcopy(state.rng)  # the data continues where it stopped
    return new, found


def recovery(train_config, n_steps, learning_rate=None):
    """The TrainConfig of recovery training: no new masks, and a warm-up of a tenth of the steps.

    train_config: of the earlier run.   learning_rate: the peak; None is that of the earlier run.
    """
    peak = train_config.learning_rate if learning_rate is None else learning_rate
    lowest = train_config.min_learning_rate
    return replace(train_config, n_steps=n_steps, warmup_steps=n_steps // 10, learning_rate=peak, sparsity=0.0,
                   dynamic="static", min_learning_rate=None if lowest is None else min(lowest, peak))


def calibration_text(state, corpus, method, n_sequences):
    """(tokens_BS, targets_BS) of the training text, the same at every call.  Raises ValueError if there are too few."""
    length = state.train_config.sequence
    require.whole("calibration", n_sequences, 1)
    names = matrices.names(state.model_config) if method in pruning.CALIBRATED else ()
    widest = max((matrices.shape(name, state.params[name].shape)[1] for name in names), default=1)
    fields.require(n_sequences * length >= widest, "calibration", n_sequences,
                   f"{n_sequences * length} tokens are too few for {method}: must be at least the number of a matrix's "
                   f"inputs, {widest}, which is {-(-widest // length)} sequences of {length}")
    fields.require(n_sequences * length <= MOST_TOKENS, "calibration", n_sequences,
                   f"{n_sequences * length:,} tokens are too many at once; {MOST_TOKENS:,} is the limit")
    batch = data.sample(corpus.train, np.random.default_rng(0), n_sequences, length)
    return batch.tokens_BS, batch.targets_BS
