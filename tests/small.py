"""Models, steps and presets so small that a run or a whole experiment takes a second."""

from minimoe import config
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import corpus

MODEL = ModelConfig(vocab_size=32, d_model=8, n_layers=1, n_heads=2, d_hidden=6, n_experts=4, top_k=2, max_sequence=8)
TRAINING = TrainConfig(n_steps=4, batch=2, sequence=8, warmup_steps=1, eval_every=2, eval_batches=2, record_every=1,
                       checkpoint_every=2)
"""For the 32 characters of `corpus.clusters`."""


def shrink(monkeypatch, **training):
    """Short texts, and every preset a model of width 16 that trains six steps; what differs between presets stays."""
    monkeypatch.setattr(corpus, "EMBEDDED_CHARACTERS", 30_000)
    narrow = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_hidden": 8, "max_sequence": 16}
    brief = {"n_steps": 6, "batch": 2, "sequence": 16, "groups": 2, "warmup_steps": 1, "eval_every": 3,
             "eval_batches": 2, "record_every": 2}
    for name, (model, train) in list(config.PRESETS.items()):
        monkeypatch.setitem(config.PRESETS, name, (model | narrow, train | brief | training))


def printed(function, *arguments, **options):
    """What a command says, as one text."""
    lines = []
    function(*arguments, say=lines.append, **options)
    return "\n".join(lines)
