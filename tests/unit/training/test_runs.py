"""Whether a run that is there is of the kind that is asked for."""

from dataclasses import replace

import pytest

from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import checkpoint, corpus, data, loop, runs

UNSAID = ModelConfig(vocab_size=32, d_model=8, n_layers=1, n_heads=2, d_hidden=6, n_experts=4, top_k=2, max_sequence=8)
SAID = replace(UNSAID, balance_coef=0.01, z_coef=0.001)
"""The weights that softmax_topk has if nothing is said."""
TRAINING = TrainConfig(n_steps=2, batch=2, sequence=8, warmup_steps=1)
TEXT = data.build(corpus.clusters(length=300), 8)
OTHER_TEXT = data.build(corpus.clusters(length=310), 8)


@pytest.fixture
def check(tmp_path):
    """Save a run of one configuration, and ask whether it is of another."""
    def saved_and_checked(config, asked, training=TRAINING, text=TEXT):
        path = tmp_path / "checkpoint.npz"
        checkpoint.save(path, loop.new_state(config, TRAINING, TEXT))
        runs.check_kind(path, checkpoint.load(path), asked, training, text)
    return saved_and_checked


@pytest.mark.parametrize(("saved", "asked"), [(SAID, UNSAID), (UNSAID, SAID), (SAID, SAID), (UNSAID, UNSAID)],
                         ids=["said, unsaid", "unsaid, said", "both said", "both unsaid"])
def test_weights_of_losses_are_the_same_whether_said_or_not(saved, asked, check):
    check(saved, asked)


@pytest.mark.parametrize("weights", [dict(balance_coef=0.02), dict(balance_coef=0.0), dict(z_coef=0.0),
                                     dict(entropy_coef=0.1), dict(sequence_coef=0.0001)], ids=str)
def test_a_run_with_other_weights_is_refused(weights, check):
    for saved, asked in ((UNSAID, replace(UNSAID, **weights)), (replace(SAID, **weights), UNSAID)):
        with pytest.raises(ValueError, match="checkpoint.npz is a run of another kind; train anew with --fresh"):
            check(saved, asked)


def test_the_weights_of_another_router_are_other_ones(check):
    """softmax_topk's weights, said of a router that is used with the sequence loss."""
    with pytest.raises(ValueError, match="another kind"):
        check(replace(UNSAID, router="sigmoid_bias"), replace(SAID, router="sigmoid_bias"))


@pytest.mark.parametrize("other", [dict(asked=replace(UNSAID, d_hidden=8)), dict(text=OTHER_TEXT),
                                   dict(training=replace(TRAINING, seed=1))], ids=["model", "text", "training"])
def test_another_model_text_or_training_is_another_kind_though_the_weights_are_the_same(other, check):
    with pytest.raises(ValueError, match="another kind"):
        check(SAID, **{"asked": UNSAID} | other)


def test_only_a_finished_run_of_the_kind_that_is_asked_for_is_taken_as_finished(tmp_path):
    path = tmp_path / "checkpoint.npz"
    state = loop.new_state(UNSAID, TRAINING, TEXT)
    checkpoint.save(path, state)
    with pytest.raises(ValueError, match="at step 0 of 2: `some command` goes on with it"):
        runs.finished(path, UNSAID, TRAINING, TEXT, "some command")
    state.step = 2
    checkpoint.save(path, state)
    assert runs.finished(path, UNSAID, TRAINING, TEXT, "some command").finished
    with pytest.raises(ValueError, match="run of another kind"):
        runs.finished(path, replace(UNSAID, top_k=1), TRAINING, TEXT, "some command")
