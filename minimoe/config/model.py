"""What a model is: its shape, and what follows from it."""

from dataclasses import dataclass, replace

from minimoe.config import fields, limits
from minimoe.moe import losses, routers


def _weight_of_loss(name):
    """The field <name>_coef; its help names the weights that routers are trained with unless it is set."""
    users = {}
    for router, page in routers.ROUTERS.items():
        if name in page.FACTS.losses:
            users.setdefault(page.FACTS.losses[name], []).append(router)
    usual = "".join(f"{coef:g} for {', '.join(names)}, " for coef, names in users.items())
    others = "other" if usual else "all"
    return fields.option(
        None, f"weight in the objective: {losses.LOSSES[name].summary}; if not set: {usual}0 for {others} routers", "1")


def _counting_first():
    return ", ".join(name for name, page in routers.ROUTERS.items() if page.FACTS.first_choices)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Mixture-of-Experts transformer.  `n_experts=1, top_k=1`, with a softmax, is the dense model.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    vocab_size: int = fields.option(65, "number of distinct tokens; for characters it comes from the text", "tokens")
    d_model: int = fields.option(128, "width of the residual stream", "numbers per token")
    n_layers: int = fields.option(4, "number of blocks", "layers")
    n_heads: int = fields.option(4, "number of attention heads", "heads")
    n_kv_heads: int | None = fields.option(None, "number of key and value heads; none: as many as n_heads", "heads")
    d_head: int | None = fields.option(
        None, "width of one attention head; none: d_model / n_heads", "numbers")
    d_hidden: int = fields.option(256, "width of the hidden layer of one expert", "numbers")
    n_experts: int = fields.option(8, "experts in a layer; 1, with top_k 1, is a dense model", "experts")
    top_k: int = fields.option(
        2, "experts that work on a token; their mean number, for expert_choice and soft", "experts")
    n_shared_experts: int = fields.option(0, "experts that work on every token, besides the top_k", "experts")
    first_dense_layers: int = fields.option(0, "first layers that are dense instead of a mixture of experts", "layers")
    moe_every: int = fields.option(1, "of the layers after them, every n-th is a mixture of experts: n", "layers")
    d_dense: int | None = fields.option(
        None, "width of the hidden layer of a dense layer; none: of the experts of a token together", "numbers")
    router: str = fields.option("softmax_topk", "how tokens choose experts")
    renormalize: bool | None = fields.option(
        None, "scale the gates of a token to sum to 1; if not set: where top_k is 2 or more")
    capacity_factor: float | None = fields.option(
        None, "room in each expert while training, in multiples of the mean load; none: dropless", "mean loads")
    eval_capacity_factor: float | None = fields.option(
        None, "the same while evaluating; generation needs none", "mean loads")
    pad_experts: bool = fields.option(False, "compute the empty slots of the experts too, as systems with buffers do")
    drop_order: str = fields.option("position", "who queues first for an expert that is full")
    jitter: float = fields.option(0.01, "spread of the factors on the router's input in training, around 1", "1")
    bias_rate: float = fields.option(
        0.001, "how far the bias of an expert moves after a step, by its load", "score per step")
    n_groups: int = fields.option(1, "nodes that the experts are on, for top_groups; not those of --groups", "groups")
    top_groups: int = fields.option(1, "groups in which a token may have experts", "groups")
    group_score: str = fields.option(
        "top2", "what a group of experts is chosen by: top2, the sum of its two best scores, as released code does; "
        "paper, of its top_k / top_groups best")
    gate_scale: float = fields.option(1.0, "factor on the gates", "1")
    balance_coef: float | None = _weight_of_loss("balance")
    z_coef: float | None = _weight_of_loss("z")
    importance_coef: float | None = _weight_of_loss("importance")
    load_coef: float | None = _weight_of_loss("load")
    sequence_coef: float | None = _weight_of_loss("sequence")
    device_coef: float | None = _weight_of_loss("device")
    entropy_coef: float | None = _weight_of_loss("entropy")
    balance_first: bool | None = fields.option(
        None, "count the first choice of each token alone in the balance loss, not all its choices; if not set: "
        f"where the router's source does ({_counting_first()})")
    n_devices: int = fields.option(1, "devices over which the device loss spreads the experts", "devices")
    global_balance: bool = fields.option(
        False, "count the loads of the balance loss over all groups and micro-batches of a step, not in each (Qwen3)")
    rope_theta: float = fields.option(10_000.0, "base of the rotary wavelengths", "1")
    norm_eps: float = fields.option(1e-5, "added to the mean square in RMSNorm", "square of the activation's unit")
    tie_embeddings: bool = fields.option(False, "use the input embedding as the output head too")
    max_sequence: int = fields.option(64, "longest context", "tokens")

    def __post_init__(self):
        limits.check_model(self)

    @property
    def head_width(self):
        """Width of one attention head, with the default filled in."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def kv_heads(self):
        """Number of key and value heads, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def loss_coefs(self):
        """Name -> weight of each auxiliary loss in the objective; all 0 where there is nothing to route."""
        routed = self.n_experts > 1 and len(self.moe_layers) > 0
        usual = routers.ROUTERS[self.router].FACTS.losses
        given = {name: getattr(self, f"{name}_coef") for name in losses.LOSSES}
        return {name: (usual.get(name, 0.0) if coef is None else coef) * routed for name, coef in given.items()}

    @property
    def layer_kinds(self):
        """What the feed-forward part of each layer is: "dense", "moe" or "soft"."""
        kind = "soft" if routers.ROUTERS[self.router].FACTS.soft else "moe"
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
        """The same with fine-grained experts: `finer` times as many, `finer` times as narrow, `finer` times as many
        per token.  Parameters and FLOPs of the experts stay; the ways to combine them grow.

                                                        [DeepSeekMoE, arXiv:2401.06066, sec. 3.1]
        Raises ValueError if the width cannot be divided so, or the router knows only one number of experts per token.
        """
        whole = isinstance(finer, int) and finer >= 1
        fields.require(whole and self.d_hidden % finer == 0, "finer", finer, f"must divide d_hidden = {self.d_hidden}")
        fixed = routers.ROUTERS[self.router].FACTS.top_k
        fields.require(finer == 1 or fixed is None, "finer", finer,
                       f"it multiplies the experts of a token, and router {self.router!r} always takes {fixed}")
        return replace(self, n_experts=self.n_experts * finer, top_k=self.top_k * finer,
                       n_shared_experts=self.n_shared_experts * finer, d_hidden=self.d_hidden // finer)

    def with_top_k(self, top_k):
        """The same trained model with a different number of experts per token: no parameter changes its shape.

        Raises ValueError if it has no router, or one that fixes the number or has learned slots for it.
        """
        facts = routers.ROUTERS[self.router].FACTS
        fields.require(len(self.layer_kinds) > self.layer_kinds.count("dense"), "top_k", top_k,
                       "every layer is dense, so that there are no experts to choose from")
        fields.require(not facts.soft, "top_k", top_k, f"router {self.router!r} has learned slots for {self.top_k}")
        fields.require(facts.top_k is None or top_k == self.top_k, "top_k", top_k,
                       f"router {self.router!r} always takes {self.top_k}")
        return replace(self, top_k=top_k, d_dense=self.dense_width)

    @property
    def counts_first_choices(self):
        """Whether the balance loss counts first choices alone, with the default filled in: that of the router."""
        facts = routers.ROUTERS[self.router].FACTS
        return facts.first_choices if self.balance_first is None else self.balance_first

    @property
    def gates_sum_to_one(self):
        """Whether gates are renormalized, with the default filled in: yes for two or more experts per token."""
        return self.top_k >= 2 if self.renormalize is None else self.renormalize
