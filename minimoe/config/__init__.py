"""What a model is, what a training run is, and which values are impossible.

Both records are frozen and check themselves, so a configuration that exists is one that can run.
The command line makes its options from these fields, so a default or an explanation stands here alone.
"""

import sys
from dataclasses import dataclass, field, fields, replace

from minimoe.names import DROP_ORDERS, LOSSES, PRESETS, ROUTERS


def _option(default, text, unit=""):
    return field(default=default, metadata={"help": f"{text} [{unit}]" if unit else text})


def _loss(name):
    usual = {}
    for router, line in ROUTERS.items():
        if name in line.losses:
            usual.setdefault(line.losses[name], []).append(router)
    unsaid = "".join(f"{coef:g} for {', '.join(users)}, " for coef, users in usual.items())
    others = "other" if usual else "all"
    return _option(None, f"weight in the objective: {LOSSES[name]}; unsaid: {unsaid}0 for {others} routers", "1")


def _require(condition, name, value, reason):
    if not condition:
        raise ValueError(f"{name} = {value!r}: {reason}")


def _require_counts(config, names, least=1):
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= least, name, value, f"must be a whole number, {least} or more")
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
    """The shape of a Mixture-of-Experts transformer.  `n_experts=1, top_k=1`, with a softmax, is the dense model.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    vocab_size: int = _option(65, "number of distinct tokens; for characters it comes from the text", "tokens")
    d_model: int = _option(128, "width of the residual stream", "numbers a token")
    n_layers: int = _option(4, "number of blocks", "layers")
    n_heads: int = _option(4, "number of attention heads", "heads")
    n_kv_heads: int | None = _option(None, "number of key and value heads; none: as many as n_heads", "heads")
    d_hidden: int = _option(256, "width of the hidden layer of one expert", "numbers")
    n_experts: int = _option(8, "experts in a layer; 1, with top_k 1, is a dense model", "experts")
    top_k: int = _option(2, "experts that work on a token; their mean number, for expert_choice and soft", "experts")
    n_shared_experts: int = _option(0, "experts that work on every token, beside the top_k", "experts")
    first_dense_layers: int = _option(0, "first layers that are dense instead of a mixture of experts", "layers")
    moe_every: int = _option(1, "of the layers after them, every n-th is a mixture of experts: n", "layers")
    d_dense: int | None = _option(
        None, "width of the hidden layer of a dense layer; none: of the experts of a token together", "numbers")
    router: str = _option("softmax_topk", "how tokens choose experts")
    renormalize: bool | None = _option(None, "scale the gates of a token to sum to 1; unsaid: if top_k is 2 or more")
    capacity_factor: float | None = _option(
        None, "room in each expert while training, in multiples of the mean load; none: dropless", "mean loads")
    eval_capacity_factor: float | None = _option(
        None, "the same while evaluating; generation needs none", "mean loads")
    pad_experts: bool = _option(False, "compute the empty slots of the experts too, as systems with buffers do")
    drop_order: str = _option("position", "who queues first for an expert that is full")
    jitter: float = _option(0.01, "spread of the factors on the router's input in training, around 1", "1")
    bias_rate: float = _option(0.001, "how far the bias of an expert moves after a step, by its load", "score a step")
    n_groups: int = _option(1, "nodes that the experts are on, for top_groups; not those of --groups", "groups")
    top_groups: int = _option(1, "groups in which a token may have experts", "groups")
    gate_scale: float = _option(1.0, "factor on the gates", "1")
    balance_coef: float | None = _loss("balance")
    z_coef: float | None = _loss("z")
    importance_coef: float | None = _loss("importance")
    load_coef: float | None = _loss("load")
    sequence_coef: float | None = _loss("sequence")
    device_coef: float | None = _loss("device")
    entropy_coef: float | None = _loss("entropy")
    n_devices: int = _option(1, "devices over which the device loss spreads the experts", "devices")
    global_balance: bool = _option(
        False, "count the loads of the balance loss over all groups and micro-batches of a step, not in each (Qwen3)")
    rope_theta: float = _option(10_000.0, "base of the rotary wavelengths", "1")
    norm_eps: float = _option(1e-5, "added to the mean square in RMSNorm", "square of the activation's unit")
    tie_embeddings: bool = _option(False, "use the input embedding as the output head too")
    max_sequence: int = _option(64, "longest context", "tokens")

    def __post_init__(self):
        _require_counts(self, ("vocab_size", "d_model", "n_layers", "n_heads", "d_hidden", "n_experts", "top_k",
                               "max_sequence", "moe_every", "n_groups", "top_groups", "n_devices"))
        _require_counts(self, ("n_shared_experts", "first_dense_layers"), least=0)
        _require_numbers(self, ("rope_theta", "norm_eps", "gate_scale"), positive=True)
        _require_numbers(self, ("jitter", "bias_rate"), positive=False)
        _require(self.norm_eps <= 1, "norm_eps", self.norm_eps, "must be at most 1: it would drown what it is added to")
        self._check_attention()
        self._check_routing()
        self._check_router()
        self._check_losses()

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
        _require(self.first_dense_layers <= self.n_layers, "first_dense_layers", self.first_dense_layers,
                 f"there are only n_layers = {self.n_layers}")
        if self.d_dense is not None:
            _require_counts(self, ("d_dense",))

    def _check_router(self):
        router = ROUTERS[self.router]
        _require(router.top_k is None or self.top_k == min(router.top_k, self.n_experts), "top_k", self.top_k,
                 f"router {self.router!r} always takes {router.top_k}")
        own = {name for other in ROUTERS.values() for name in other.options} - set(router.options)
        for option in fields(self):
            users = [name for name, other in ROUTERS.items() if option.name in other.options]
            _require(option.name not in own or getattr(self, option.name) == option.default, option.name,
                     getattr(self, option.name), f"router {self.router!r} has no use for it; {', '.join(users)} would")
        _require(self.jitter < 1, "jitter", self.jitter, "must be below 1, since factors are from 1 - jitter")
        _require(self.n_experts % self.n_groups == 0, "n_groups", self.n_groups,
                 f"must divide n_experts = {self.n_experts}")
        _require(self.top_groups <= self.n_groups, "top_groups", self.top_groups,
                 f"there are only n_groups = {self.n_groups}")
        room = self.top_groups * self.n_experts // self.n_groups
        _require(self.top_k <= room, "top_groups", self.top_groups,
                 f"so few groups have {room} experts, fewer than top_k = {self.top_k}")
        for name in ("capacity_factor", "eval_capacity_factor"):
            _require(not router.soft or getattr(self, name) is None, name, getattr(self, name),
                     f"router {self.router!r} has no assignments to limit")
        _require(isinstance(self.pad_experts, bool), "pad_experts", self.pad_experts, "must be True or False")
        _require(not (router.soft and self.pad_experts), "pad_experts", self.pad_experts,
                 f"router {self.router!r} has no empty slots")
        _require(not router.soft or self.n_shared_experts == 0, "n_shared_experts", self.n_shared_experts,
                 f"router {self.router!r} lets every expert work for every token: all are shared")

    def _check_losses(self):
        for name in LOSSES:
            if getattr(self, f"{name}_coef") is not None:
                _require_numbers(self, (f"{name}_coef",), positive=False)
        _require("load" in ROUTERS[self.router].losses or not self.load_coef, "load_coef", self.load_coef,
                 f"the expected load is a matter of noise, which router {self.router!r} has none of; noisy_topk has")
        _require(self.n_experts % self.n_devices == 0, "n_devices", self.n_devices,
                 f"must divide n_experts = {self.n_experts}")
        _require(self.n_devices > 1 or not self.device_coef or self.n_experts == 1, "n_devices", self.n_devices,
                 "the device loss of one device is 1 whatever the router does; use 2 or more, or device_coef 0")
        _require(isinstance(self.global_balance, bool), "global_balance", self.global_balance, "must be True or False")

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
        """Name -> weight of each auxiliary loss in the objective; all 0 where there is nothing to route."""
        routed = self.n_experts > 1 and len(self.moe_layers) > 0
        said = {name: getattr(self, f"{name}_coef") for name in LOSSES}
        usual = ROUTERS[self.router].losses
        return {name: (usual.get(name, 0.0) if coef is None else coef) * routed for name, coef in said.items()}

    @property
    def layer_kinds(self):
        """What the feed-forward part of each layer is: "dense", "moe" or "soft"."""
        kind = "soft" if ROUTERS[self.router].soft else "moe"
        places = range(1 - self.first_dense_layers, self.n_layers - self.first_dense_layers + 1)
        return tuple(kind if place > 0 and place % self.moe_every == 0 else "dense" for place in places)

    @property
    def moe_layers(self):
        """Numbers of the layers that have a router, and so a Routing."""
        return tuple(i for i, kind in enumerate(self.layer_kinds) if kind == "moe")

    @property
    def dense_width(self):
        """Width of the hidden layer of a dense layer, with the default filled in: that of a token's experts."""
        return self.d_dense or (self.top_k + self.n_shared_experts) * self.d_hidden

    def finer(self, finer):
        """The same with fine-grained experts: `finer` times as many, `finer` times as narrow, `finer` times as many a
        token.  Parameters and FLOPs of the experts stay; the ways to combine them grow.

                                                        [DeepSeekMoE, arXiv:2401.06066, sec. 3.1]
        Raises ValueError if the width cannot be divided so, or the router knows one number of experts a token alone.
        """
        whole = isinstance(finer, int) and finer >= 1
        _require(whole and self.d_hidden % finer == 0, "finer", finer, f"must divide d_hidden = {self.d_hidden}")
        fixed = ROUTERS[self.router].top_k
        _require(finer == 1 or fixed is None, "finer", finer,
                 f"it multiplies the experts of a token, and router {self.router!r} always takes {fixed}")
        return replace(self, n_experts=self.n_experts * finer, top_k=self.top_k * finer,
                       n_shared_experts=self.n_shared_experts * finer, d_hidden=self.d_hidden // finer)

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
    groups: int = _option(
        1, "groups of a micro-batch, each with capacity and balance of its own; they run side by side", "groups")
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
        _require_counts(self, ("n_steps", "batch", "sequence", "groups", "accumulate", "eval_every",
                               "eval_batches", "record_every", "checkpoint_every"))
        _require(self.batch % self.groups == 0, "groups", self.groups,
                 f"must divide batch = {self.batch}; 1 is the whole batch")
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


def preset(name, model=None, train=None):
    """The named preset's (ModelConfig, TrainConfig); `model` and `train` are dicts of fields that override it.

    Raises ValueError if there is no preset of this name.
    """
    _require(isinstance(name, str) and name in PRESETS, "preset", name, f"must be one of {', '.join(PRESETS)}")
    model_fields, train_fields = PRESETS[name]
    router = ROUTERS.get((model or {}).get("router"))
    n_experts = (model_fields | (model or {})).get("n_experts", ModelConfig.n_experts)
    only = {"top_k": min(router.top_k, n_experts)} if router and router.top_k and isinstance(n_experts, int) else {}
    return ModelConfig(**model_fields | only | (model or {})), TrainConfig(**train_fields | (train or {}))
