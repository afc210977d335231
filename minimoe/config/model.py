"""The configuration of a model: its shape, and what follows from it."""

from dataclasses import dataclass, replace

from minimoe.config import fields, limits
from minimoe.moe import losses, routers


def _weight_of_loss(name):
    """The field <name>_coef; its help lists each router's default."""
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
    """The shape of a Mixture-of-Experts transformer.  With a softmax router, `n_experts=1, top_k=1` is the dense model.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    vocab_size: int = fields.option(65, "number of distinct tokens; for characters it is taken from the text", "tokens")
    d_model: int = fields.option(128, "width of the residual stream", "numbers per token")
    n_layers: int = fields.option(4, "number of blocks", "layers")
    n_heads: int = fields.option(4, "number of attention heads", "heads")
    n_kv_heads: int | None = fields.option(None, "number of key and value heads; none: the same as n_heads", "heads")
    d_head: int | None = fields.option(
        None, "width of one attention head; none: d_model / n_heads", "numbers")
    d_hidden: int = fields.option(256, "width of the hidden layer of one expert", "numbers")
    n_experts: int = fields.option(8, "experts in a layer; 1, with top_k 1, is a dense model", "experts")
    top_k: int = fields.option(
        2, "experts per token; for expert_choice and soft, the mean number", "experts")
    n_shared_experts: int = fields.option(0, "shared experts, which every token uses besides its top_k", "experts")
    first_dense_layers: int = fields.option(0, "first layers that are dense instead of a mixture of experts", "layers")
    moe_every: int = fields.option(1, "n, if every n-th of the remaining layers is a mixture of experts", "layers")
    d_dense: int | None = fields.option(
        None, "width of the hidden layer of a dense layer; none: the total width of a token's experts", "numbers")
    router: str = fields.option("softmax_topk", "how tokens choose experts")
    renormalize: bool | None = fields.option(
        None, "scale the gates of a token to sum to 1; if not set: only where top_k is 2 or more")
    capacity_factor: float | None = fields.option(
        None, "capacity of each expert in training, in multiples of the mean load; none: dropless", "mean loads")
    eval_capacity_factor: float | None = fields.option(
        None, "the same in evaluation; generation needs none", "mean loads")
    pad_experts: bool = fields.option(False, "compute the experts' empty slots too, as systems with fixed buffers do")
    drop_order: str = fields.option("position", "the order in which tokens queue for an expert")
    jitter: float = fields.option(0.01, "in training, the router's input is multiplied by factors of 1 +- this", "1")
    bias_rate: float = fields.option(
        0.001, "how far each step moves the bias of an expert, up or down according to its load", "score per step")
    n_groups: int = fields.option(1, "groups (nodes) of experts, for top_groups; unrelated to --groups", "groups")
    top_groups: int = fields.option(1, "groups in which a token may have experts", "groups")
    group_score: str = fields.option(
        "top2", "score of a group of experts: top2, the sum of its two best scores, as in released code; "
        "paper, the sum of its top_k / top_groups best scores")
    gate_scale: float = fields.option(1.0, "factor on the gates", "1")
    balance_coef: float | None = _weight_of_loss("balance")
    z_coef: float | None = _weight_of_loss("z")
    importance_coef: float | None = _weight_of_loss("importance")
    load_coef: float | None = _weight_of_loss("load")
    sequence_coef: float | None = _weight_of_loss("sequence")
    device_coef: float | None = _weight_of_loss("device")
    entropy_coef: float | None = _weight_of_loss("entropy")
    balance_first: bool | None = fields.option(
        None, "count only the first choice of each token in the balance loss, not all its choices; if not set: "
        f"only where the router's source does ({_counting_first()})")
    n_devices: int = fields.option(1, "devices over which the device loss spreads the experts", "devices")
    global_balance: bool = fields.option(
        False, "count the loads of the balance loss over all groups and micro-batches of a step together (Qwen3)")
    rope_theta: float = fields.option(10_000.0, "base of the wavelengths of the rotary embeddings", "1")
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
        """The kind of each layer's feed-forward network: "dense", "moe" or "soft"."""
        kind = "soft" if routers.ROUTERS[self.router].FACTS.soft else "moe"
        places = range(1 - self.first_dense_layers, self.n_layers - self.first_dense_layers + 1)
        return tuple(kind if place > 0 and place % self.moe_every == 0 else "dense" for place in places)

    @property
    def moe_layers(self):
        """The indices of the layers that have a router, and so a Routing."""
        return tuple(i for i, kind in enumerate(self.layer_kinds) if kind == "moe")

    @property
    def dense_width(self):
        """Width of the hidden layer of a dense layer, with the default filled in: the total of a token's experts."""
        return self.d_dense or (self.top_k + self.n_shared_experts) * self.d_hidden

    def finer(self, finer):
        """The same with fine-grained experts: `finer` times as many, `finer` times narrower, `finer` times as many per
        token.  The parameters and FLOPs of the experts do not change; the number of possible combinations grows.

                                                        [DeepSeekMoE, arXiv:2401.06066, sec. 3.1]
        Raises ValueError if the width is not divisible, or the router supports only one number of experts per token.
        """
        whole = isinstance(finer, int) and finer >= 1
        fields.require(whole and self.d_hidden % finer == 0, "finer", finer, f"must divide d_hidden = {self.d_hidden}")
        fixed = routers.ROUTERS[self.router].FACTS.top_k
        fields.require(finer == 1 or fixed is None, "finer", finer,
                       f"it multiplies the experts of a token, and router {self.router!r} always uses {fixed}")
        return replace(self, n_experts=self.n_experts * finer, top_k=self.top_k * finer,
                       n_shared_experts=self.n_shared_experts * finer, d_hidden=self.d_hidden // finer)

    def with_top_k(self, top_k):
        """The same trained model with a different number of experts per token; no parameter changes its shape.

        Raises ValueError if it has no router, or a router that fixes the number or has learned slots for it.
        """
        facts = routers.ROUTERS[self.router].FACTS
        fields.require(len(self.layer_kinds) > self.layer_kinds.count("dense"), "top_k", top_k,
                       "every layer is dense, so there are no experts to choose from")
        fields.require(not facts.soft, "top_k", top_k, f"router {self.router!r} has learned slots for {self.top_k}")
        fields.require(facts.top_k is None or top_k == self.top_k, "top_k", top_k,
                       f"router {self.router!r} always uses {self.top_k}")
        return replace(self, top_k=top_k, d_dense=self.dense_width)

    @property
    def counts_first_choices(self):
        """Whether the balance loss counts only first choices, with the router's default filled in."""
        facts = routers.ROUTERS[self.router].FACTS
        return facts.first_choices if self.balance_first is None else self.balance_first

    @property
    def gates_sum_to_one(self):
        """Whether gates are renormalized, with the default filled in: yes for two or more experts per token."""
        return self.top_k >= 2 if self.renormalize is None else self.renormalize
