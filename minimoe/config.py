"""What a model is, what a training run is, and which values are impossible.

Both records are frozen and check themselves, so a configuration that exists is one that can run.
The command line makes its options from these fields, so a default or an explanation stands here alone.
"""

import sys
from dataclasses import dataclass, field

ROUTERS = {"softmax_topk": "softmax over all experts, the top_k best take the token (Mixtral, OLMoE)"}
"""Name -> what it is.  A name is also a file in moe/routers/; a new router adds its file and one line here."""

DROP_ORDERS = {
    "position": "earlier tokens first: causal (Switch, Mixtral ports)",
    "rank": "all first choices, then all second choices (GShard)",
    "priority": "first choices first, and among them the surest tokens (V-MoE)",
    "random": "a random order in training, by position in evaluation",
}
"""Who queues first for an expert whose capacity is too small.  All but "position" let later tokens push out earlier."""


def _option(default, text, unit=""):
    return field(default=default, metadata={"help": f"{text} [{unit}]" if unit else text})


def _require(condition, name, value, reason):
    if not condition:
        raise ValueError(f"{name} = {value!r}: {reason}")


def _require_counts(config, names):
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= 1, name, value, "must be a whole number, 1 or more")
        _require(value <= 10**9, name, value, "is more than any machine can hold; 1,000,000,000 is the limit")


def _require_numbers(config, names, positive):
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        _require(number and (value > 0 if positive else value >= 0), name, value,
                 f"must be a finite number {'above 0' if positive else 'of 0 or more'}")
        if isinstance(value, float):
            object.__setattr__(config, name, float(value))  # a numpy.float64 would turn float32 arrays into float64


def _require_name(config, name, known):
    value = getattr(config, name)
    _require(isinstance(value, str) and value in known, name, value, f"must be one of {', '.join(known)}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Mixture-of-Experts transformer.  `n_experts=1, top_k=1` is the dense model.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    vocab_size: int = _option(65, "number of distinct tokens; for characters it comes from the text", "tokens")
    d_model: int = _option(128, "width of the residual stream", "numbers a token")
    n_layers: int = _option(4, "number of blocks", "layers")
    n_heads: int = _option(4, "number of attention heads", "heads")
    n_kv_heads: int | None = _option(None, "number of key and value heads; none: as many as n_heads", "heads")
    d_hidden: int = _option(256, "width of the hidden layer of one expert", "numbers")
    n_experts: int = _option(8, "experts in a layer; 1, with top_k 1, is a dense model", "experts")
    top_k: int = _option(2, "experts that work on a token", "experts")
    router: str = _option("softmax_topk", "how tokens choose experts")
    renormalize: bool | None = _option(None, "scale the gates of a token to sum to 1; unsaid: if top_k is 2 or more")
    capacity_factor: float | None = _option(
        None, "room in each expert while training, in multiples of the mean load; none: dropless", "mean loads")
    eval_capacity_factor: float | None = _option(
        None, "the same while evaluating; generation needs none", "mean loads")
    drop_order: str = _option("position", "who queues first for an expert that is full")
    balance_coef: float = _option(0.01, "weight of the load-balancing loss in the objective", "1")
    z_coef: float = _option(0.001, "weight of the router z-loss in the objective", "1")
    rope_theta: float = _option(10_000.0, "base of the rotary wavelengths", "1")
    norm_eps: float = _option(1e-5, "added to the mean square in RMSNorm", "square of the activation's unit")
    tie_embeddings: bool = _option(False, "use the input embedding as the output head too")
    max_sequence: int = _option(64, "longest context", "tokens")

    def __post_init__(self):
        _require_counts(self, ("vocab_size", "d_model", "n_layers", "n_heads", "d_hidden", "n_experts", "top_k",
                               "max_sequence"))
        _require_numbers(self, ("balance_coef", "z_coef"), positive=False)
        _require_numbers(self, ("rope_theta", "norm_eps"), positive=True)
        _require(self.norm_eps <= 1, "norm_eps", self.norm_eps, "must be at most 1: it would drown what it is added to")
        self._check_attention()
        self._check_routing()

    def _check_attention(self):
        _require(self.d_model % self.n_heads == 0, "d_model", self.d_model,
                 f"must be a multiple of n_heads = {self.n_heads}")
        _require(self.d_head % 2 == 0, "d_model", self.d_model,
                 f"d_model / n_heads = {self.d_head} must be even: rotary positions turn pairs of numbers")
        if self.n_kv_heads is not None:
            _require_counts(self, ("n_kv_heads",))
            _require(self.n_heads % self.n_kv_heads == 0, "n_kv_heads", self.n_kv_heads,
                     f"must divide n_heads = {self.n_heads}")
        _require(isinstance(self.tie_embeddings, bool), "tie_embeddings", self.tie_embeddings, "must be True or False")

    def _check_routing(self):
        _require(self.top_k <= self.n_experts, "top_k", self.top_k,
                 f"a token cannot have more experts than there are: n_experts = {self.n_experts}")
        _require_name(self, "router", ROUTERS)
        _require_name(self, "drop_order", DROP_ORDERS)
        _require(self.renormalize is None or isinstance(self.renormalize, bool), "renormalize", self.renormalize,
                 "must be True, False or None")
        _require(not (self.renormalize and self.top_k == 1), "renormalize", self.renormalize,
                 "with top_k = 1 the one gate would be p / p = 1 whatever the router says, so the task could never "
                 "teach the router; use renormalize=False (the raw probability) or top_k >= 2")
        for name in ("capacity_factor", "eval_capacity_factor"):
            if getattr(self, name) is not None:
                _require_numbers(self, (name,), positive=True)

    @property
    def d_head(self):
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self):
        """Number of key and value heads, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def loss_coefs(self):
        """Weights of the balance and z-loss in the objective; 0 with one expert, where there is nothing to route."""
        return (self.balance_coef, self.z_coef) if self.n_experts > 1 else (0.0, 0.0)

    @property
    def gates_sum_to_one(self):
        """Whether gates are renormalised, with the default filled in: yes for two or more experts a token."""
        return self.top_k >= 2 if self.renormalize is None else self.renormalize


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how long, how much data a step, how the optimiser steps, when to look and to save.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    n_steps: int = _option(1000, "optimiser steps", "steps")
    batch: int = _option(12, "sequences in a micro-batch", "sequences")
    sequence: int = _option(64, "length of a training sequence", "tokens")
    accumulate: int = _option(1, "micro-batches whose gradients are averaged into one step", "micro-batches")
    learning_rate: float = _option(3e-3, "peak learning rate", "1/step")
    min_learning_rate: float | None = _option(
        None, "learning rate at the last step; none: a tenth of the peak", "1/step")
    warmup_steps: int = _option(100, "steps over which the learning rate rises from 0", "steps")
    weight_decay: float = _option(0.1, "decoupled decay of matrices; gains are left alone", "1/step per learning rate")
    beta1: float = _option(0.9, "memory of AdamW's mean gradient", "1")
    beta2: float = _option(0.99, "memory of AdamW's mean squared gradient", "1")
    adam_eps: float = _option(1e-8, "added to the root mean square gradient", "nats per unit of the weight")
    clip_norm: float = _option(1.0, "longest gradient, over all parameters together", "nats per unit of the weight")
    eval_every: int = _option(100, "steps between evaluations on the held-out text", "steps")
    eval_batches: int = _option(40, "batches of one evaluation, the same ones every time", "batches")
    record_every: int = _option(10, "steps between two records of what the router does", "steps")
    checkpoint_every: int = _option(100, "steps between checkpoints", "steps")
    seed: int = _option(0, "seed of the initial weights and of the order of the data")

    def __post_init__(self):
        _require_counts(self, ("n_steps", "batch", "sequence", "accumulate", "eval_every", "eval_batches",
                               "record_every", "checkpoint_every"))
        _require_numbers(self, ("learning_rate", "adam_eps", "clip_norm"), positive=True)
        _require_numbers(self, ("weight_decay", "warmup_steps", "beta1", "beta2"), positive=False)
        for name in ("warmup_steps", "seed"):
            value = getattr(self, name)
            _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, name, value,
                     "must be a whole number, 0 or more")
        for name in ("beta1", "beta2"):
            _require(getattr(self, name) < 1, name, getattr(self, name), "must be below 1")
        if self.min_learning_rate is not None:
            _require_numbers(self, ("min_learning_rate",), positive=False)
            _require(self.min_learning_rate <= self.learning_rate, "min_learning_rate", self.min_learning_rate,
                     f"must not be above learning_rate = {self.learning_rate}")

    @property
    def last_learning_rate(self):
        """Learning rate at the last step, with the default filled in: a tenth of the peak."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate


PRESETS = {
    "tiny": (
        dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=32, n_experts=4, top_k=2, max_sequence=32),
        dict(n_steps=200, batch=8, sequence=32, warmup_steps=20, eval_every=50, eval_batches=10, checkpoint_every=50)),
    "shakespeare-cpu": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=256, n_experts=8, top_k=2, max_sequence=64),
        dict(n_steps=1000, batch=12, sequence=64, learning_rate=3e-3)),
    "tour": (
        dict(d_model=128, n_layers=4, n_heads=4, d_hidden=128, n_experts=8, top_k=2),
        dict(n_steps=600, eval_every=60, eval_batches=16, record_every=5)),
    "tour-quick": (
        dict(d_model=32, n_layers=2, n_heads=4, d_hidden=32, n_experts=8, top_k=2),
        dict(n_steps=100, batch=8, warmup_steps=10, eval_every=25, eval_batches=4, record_every=2)),
}
"""Name -> (model fields, training fields) that differ from the defaults."""


def preset(name, model=None, train=None):
    """The named preset's (ModelConfig, TrainConfig); `model` and `train` are dicts of fields that override it.

    Raises ValueError if there is no preset of this name.
    """
    _require(isinstance(name, str) and name in PRESETS, "preset", name, f"must be one of {', '.join(PRESETS)}")
    model_fields, train_fields = PRESETS[name]
    return ModelConfig(**model_fields | (model or {})), TrainConfig(**train_fields | (train or {}))
