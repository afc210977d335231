"""What the bar says of the last steps."""

from types import SimpleNamespace

from minimoe.config import TrainConfig
from minimoe.training import progress


def test_the_bar_counts_the_tokens_of_all_micro_batches(capsys):
    """2 sequences of 5 tokens in 10 micro-batches are 100 tokens, in 0.05 s."""
    history = {"ce": [1.25], "seconds": [0.05], "drop": [0.125], "balance": [1.5]}
    config = TrainConfig(n_steps=1, batch=2, sequence=5, accumulate=10)
    state = SimpleNamespace(train_config=config, step=0, history=history)
    with progress.bar(state, "a run") as on_step:
        on_step(state)
    assert "loss 1.250, 2,000 tokens/s, dropped 12.5%, balance 1.500" in capsys.readouterr().err
