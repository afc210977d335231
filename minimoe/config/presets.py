"""Named configurations."""

from minimoe.config import fields
from minimoe.config.model import ModelConfig
from minimoe.config.train import TrainConfig
from minimoe.moe import routers

PRESETS = {
    "tiny": (
        dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=32, n_experts=4, top_k=2, max_sequence=32),
        dict(n_steps=200, batch=8, sequence=32, groups=2, warmup_steps=20, eval_every=50, eval_batches=10,
             checkpoint_every=50)),
    "shakespeare-cpu": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=256, n_experts=8, top_k=2, max_sequence=64),
        dict(n_steps=1000, batch=12, sequence=64, groups=2, learning_rate=2e-3, warmup_steps=50)),
    "tour": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=128, n_experts=8, top_k=2),
        dict(n_steps=600, groups=2, eval_every=60, eval_batches=16, record_every=5)),
    "tour-quick": (
        dict(d_model=32, n_layers=2, n_heads=4, d_hidden=32, n_experts=8, top_k=2),
        dict(n_steps=100, batch=8, groups=2, warmup_steps=10, eval_every=25, eval_batches=4, record_every=2)),
    "lessons": (
        dict(d_model=64, n_layers=3, n_heads=4, d_hidden=32, n_experts=8, top_k=2),
        dict(n_steps=300, groups=2, warmup_steps=40, eval_every=100, eval_batches=16, record_every=5)),
    "routers": (
        dict(d_model=64, n_layers=2, n_heads=4, d_hidden=128, n_experts=4, top_k=1, capacity_factor=1.25),
        dict(n_steps=400, groups=2, warmup_steps=40, eval_every=100, eval_batches=32, record_every=5)),
    "routers-quick": (
        dict(d_model=32, n_layers=2, n_heads=4, d_hidden=64, n_experts=4, top_k=1, capacity_factor=1.25),
        dict(n_steps=20, batch=4, groups=2, warmup_steps=5, eval_every=10, eval_batches=2, record_every=2)),
    "sparsity": (
        dict(d_model=32, n_layers=2, n_heads=2, d_hidden=128, n_experts=1, top_k=1, max_sequence=64),
        dict(n_steps=400, groups=2, eval_batches=32, record_every=100, checkpoint_every=500)),
    "sparsity-quick": (
        dict(d_model=32, n_layers=1, n_heads=2, d_hidden=64, n_experts=1, top_k=1, max_sequence=32),
        dict(n_steps=8, batch=4, sequence=32, groups=2, eval_batches=2, record_every=100)),
}
"""Name -> (model fields, training fields) that differ from the defaults."""


def preset(name, model=None, train=None):
    """The named preset's (ModelConfig, TrainConfig); `model` and `train` are dicts of fields that override it.

    If only n_steps is given, the warm-up is shortened to at most half of the steps.
    Raises ValueError if there is no preset of this name.
    """
    fields.require(isinstance(name, str) and name in PRESETS, "preset", name, f"must be one of {', '.join(PRESETS)}")
    model_fields, train_fields = PRESETS[name]
    for what, given, record in (("model", model, ModelConfig), ("train", train, TrainConfig)):
        _check_overrides(what, {} if given is None else given, record)
    overrides = model or {}
    n_experts = (model_fields | overrides).get("n_experts", ModelConfig.n_experts)
    router = overrides.get("router")
    router = routers.ROUTERS.get(router) if isinstance(router, str) else None
    only = {}
    if router and router.FACTS.top_k and isinstance(n_experts, int):
        only["top_k"] = min(router.FACTS.top_k, n_experts)
    train_fields = train_fields | _warm_up(train_fields, train or {})
    return ModelConfig(**model_fields | only | overrides), TrainConfig(**train_fields)


def _check_overrides(what, given, record):
    fields.require(isinstance(given, dict), what, given, "must be a dict of fields")
    unknown = [name for name in given if name not in record.__dataclass_fields__]
    fields.require(not unknown, what, given, f"{record.__name__} has no field {unknown and unknown[0]!r}")


def _warm_up(train_fields, overrides):
    """The overrides, with a warm-up of at most half of the steps if only n_steps is given."""
    n_steps = overrides.get("n_steps")
    if "warmup_steps" in overrides or not isinstance(n_steps, int):
        return overrides
    usual = train_fields.get("warmup_steps")
    return overrides if usual is None else overrides | {"warmup_steps": min(usual, max(n_steps, 0) // 2)}
