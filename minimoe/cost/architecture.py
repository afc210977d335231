"""What a language model is made of, in numbers: enough to count its parameters, its FLOPs and its bytes.

Published models and ours are described alike.  A number of parameters often hangs on an odd detail (who has a bias,
what the norm of the queries is as wide as): the fields name each that we have met.
"""

import difflib
import itertools
import re
import reprlib
from dataclasses import MISSING, dataclass, field, fields

from minimoe.cost import descriptions

FEED_FORWARD = {"swiglu": 3, "geglu": 3, "reglu": 3, "gelu": 2, "relu": 2, "silu": 2, "relu2": 2}
"""Kind of feed-forward block -> its matrices: a gated one has one more."""

BIASED = {"attention": {"qkv", "out"}, "qkv": {"qkv"}, "out": {"out"}, "router": {"router"}, "experts": {"experts"},
          "shared": {"shared"}, "dense": {"dense"}, "norms": {"norms"}, "head": {"head"}}
"""Word of `biases` -> what it means.  qkv and out: the projections to queries, keys and values, and the one back."""

UNTRAINED = {"hash", "fixed", "random", "uniform"}
"""Words of `router` for one without a matrix, if none of `TRAINED` stands beside them."""

TRAINED = {"softmax", "sigmoid"}

REMARKS = ("aux_coef_hf", "lb_coef", "z_coef", "groups", "group_limit", "route_scale", "batch", "dropout", "lr",
           "optimizer", "iters")
"""Keys of a description that say how a model is trained or what gates are multiplied by: no cost hangs on them."""


def _count(default=MISSING, least=1, says="", most=10**12):
    return field(default=default, metadata={"least": least, "most": most, "says": says})


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values are made from one narrow vector a token, which alone is cached.

                                                        [DeepSeek-V2, arXiv:2405.04434, sec. 2.1]
    q_lora_rank: width of the vector that queries are made from; None: they are made from the token itself.
    kv_lora_rank: width of that for keys and values.   qk_nope_head_dim, qk_rope_head_dim: of a head's query and key,
    without positions and with.   v_head_dim: of its value.
    """

    q_lora_rank: int | None = _count()
    kv_lora_rank: int = _count()
    qk_nope_head_dim: int = _count()
    qk_rope_head_dim: int = _count()
    v_head_dim: int = _count()

    def __post_init__(self):
        for f in fields(self):
            _check_count(f"mla.{f.name}", getattr(self, f.name), 1, or_none=f.name == "q_lora_rank")


def _choice(choices, default=None, says=""):
    return field(default=default, metadata={"choices": choices, "says": says})


@dataclass(frozen=True)
class Architecture:
    """A transformer, by the keys of a description.  None is "no" or "not said".  `read` takes looser spellings.

    Raises ValueError with the field, its value and what would be right for any description that cannot be.  One that
    exists has the types that are written here: it can be hashed.
    """

    vocab: int = _count(says="tokens that it tells apart")
    d_model: int = _count(says="width of the residual stream")
    n_layers: int = _count(most=10_000, says="layers, of all stacks")  # they are listed one by one
    n_heads: int = _count(says="query heads of a layer")
    n_kv_heads: int | None = _count(None, says="key and value heads; null: as many as query heads")
    head_dim: int | None = _count(None, says="width of a head; null: d_model / n_heads, or said by mla")
    mla: Latent | None = field(default=None, metadata={"says": "latent attention, a record of widths"})
    qk_norm: bool | str | None = _choice(
        (True, "per head"), says="norms of queries and of keys: as wide as all heads, or as one that all share")
    qkv_bias: bool | None = _choice((True,), says="biases of queries, keys and values")
    sinks: str | None = _choice(("1 per head",), says="scores that stand beside those of the tokens")
    n_routed_experts: int = _count(0, 0, says="experts that tokens are sent to; 0 is a dense model")
    top_k: int = _count(0, 0, says="how many of them a token is sent to")
    expert_hidden: int | None = _count(None, says="width of the hidden layer of an expert")
    router: str | None = field(default=None, metadata={
        "says": "in words: 'noisy' has a second matrix, for the noise; 'hash', 'fixed', 'random' and 'uniform' have "
                "none, unless 'softmax' or 'sigmoid' stands beside them; other words, and these after 'not', 'no', "
                "'non' or 'without', change nothing"})
    soft_slots: int = _count(0, 0, says="Soft MoE: slots of a sequence, to which tokens are mixed instead of sent")
    n_shared_experts: int = _count(0, 0, says="experts that every token uses")
    shared_hidden: int | None = _count(None, says="width of the hidden layer of a shared expert; null: expert_hidden")
    shared_gate: str | None = _choice(("sigmoid",), says="a learned weight of the shared experts, of one vector")
    dense_first_layers: int = _count(0, 0, says="first layers that are dense, of each stack")
    moe_every_n: int = _count(1, says="of a stack's layers after them, every n-th has experts: n")
    dense_ffn_hidden: int | None = _count(None, says="width of the hidden layer of a dense layer")
    ffn_type: str = _choice(tuple(FEED_FORWARD), "swiglu", says="the feed-forward block")
    norm: str | None = _choice(("RMSNorm", "LayerNorm", "without weights"),
                               says="null: LayerNorm if biases is true, else RMSNorm")
    n_norms: int | None = _count(None, says="norms of a layer; null: 2.  A second attention has one more")
    biases: bool | str | None = field(default=None, metadata={
        "words": tuple(BIASED),
        "says": "true: all have them; or some, 'a+b', which must be there; or 'all but a+b'; of " + ", ".join(BIASED)
                + ".  A bias for choosing experts alone (DeepSeek-V3) is a buffer there: it is not counted"})
    tied_embeddings: bool = _choice((True, False), False, says="the head is the table of the embedding")
    pos: str | None = _choice(("rotary", "learned", "relative", "none"), says="null: rotary; relative with two stacks")
    ctx: int | None = _count(None, says="longest context, tokens")
    encoder_decoder: str | None = field(default=None, metadata={
        "says": "'a+b': an encoder of a layers, and a decoder of b that also attends to it"})

    def __post_init__(self):
        for f in fields(self):
            if "least" in f.metadata:
                _check_count(f.name, getattr(self, f.name), f.metadata["least"], f.default is None, f.metadata["most"])
            elif "choices" in f.metadata:
                _check_choice(f.name, getattr(self, f.name), f.metadata["choices"], or_none=f.default is None)
        _need(self.mla is None or isinstance(self.mla, Latent), "mla", self.mla, "must be a record of "
              + ", ".join(f.name for f in fields(Latent)) + ", or null")
        _need(self.router is None or isinstance(self.router, str), "router", self.router, "must be words, or null")
        _read_biases(self.biases)
        _need(sum(self.stacks) == self.n_layers, "n_layers", self.n_layers,
              f"must be the sum of encoder_decoder = {self.encoder_decoder!r}")
        self._check_attention()
        self._check_feed_forward()
        self._check_biases()
        _need(self.positions != "learned" or self.ctx is not None, "ctx", None, "must be said with learned positions")

    def _check_attention(self):
        _need(self.n_heads % self.kv_heads == 0, "n_kv_heads", self.n_kv_heads, f"must divide n_heads = {self.n_heads}")
        if self.mla is None:
            _need(self.head_dim is not None or self.d_model % self.n_heads == 0, "head_dim", None,
                  f"must be said, since n_heads = {self.n_heads} does not divide d_model = {self.d_model}")
            return
        own = self.mla.qk_nope_head_dim, self.mla.qk_rope_head_dim, self.value_width, self.query_width
        _need(self.head_dim in (None, *own), "head_dim", self.head_dim, "must be null with mla, which says its own")
        _need(not self.qk_norm, "qk_norm", self.qk_norm, "must be null with mla, which has norms of its own")

    def _check_feed_forward(self):
        E, moe = self.n_routed_experts, "moe" in self.kinds
        _need(moe or E == 0, "n_routed_experts", E, "dense_first_layers and moe_every_n leave no layer for them")
        _need("dense" not in self.kinds or self.dense_ffn_hidden is not None, "dense_ffn_hidden", None,
              f"must be said: {self.kinds.count('dense')} of {self.n_layers} layers are dense")
        if moe:
            _need(1 <= self.top_k <= E, "top_k", self.top_k, f"must be from 1 to n_routed_experts = {E}")
            _need(self.expert_hidden is not None, "expert_hidden", None, f"must be said with n_routed_experts = {E}")
        for name in ("top_k", "n_shared_experts", "soft_slots"):
            _need(moe or getattr(self, name) == 0, name, getattr(self, name), "must be 0 without routed experts")
        for name in ("expert_hidden", "router"):
            _need(moe or getattr(self, name) is None, name, getattr(self, name), "must be null without routed experts")
        for name in ("shared_hidden", "shared_gate"):
            _need(self.n_shared_experts > 0 or not getattr(self, name), name, getattr(self, name),
                  "must be null without shared experts")

    def _check_biases(self):
        """What is named one by one must be there; true and "all but" mean whatever is there."""
        if self.biases in (None, True) or self.biases.startswith("all but "):
            return
        moe = self.n_routed_experts > 0
        absent = {
            "norms": self.norm != "LayerNorm" and f"norm is {self.norm or 'RMSNorm'}, and only LayerNorm has biases",
            "router": not (moe and (self.router_matrices or self.soft_slots)) and "there is no router with a matrix",
            "experts": not moe and "n_routed_experts is 0",
            "shared": self.n_shared_experts == 0 and "n_shared_experts is 0",
            "dense": "dense" not in self.kinds and "no layer is dense",
            "head": self.tied_embeddings and "tied_embeddings is true, and the table of the embedding has no biases",
        }
        for word in self.biases.split("+"):
            _need(not absent.get(word), "biases", self.biases, f"must not name {word!r}: {absent.get(word)}")

    @property
    def kv_heads(self):
        """Key and value heads, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def query_width(self):
        """Width of a head's query and key."""
        if self.mla is not None:
            return self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim
        return self.head_dim or self.d_model // self.n_heads

    @property
    def value_width(self):
        """Width of a head's value."""
        return self.query_width if self.mla is None else self.mla.v_head_dim

    @property
    def dense(self):
        """Whether tokens have no choice: without experts, or with one, which is no Soft MoE's."""
        return self.n_routed_experts == 0 or (self.n_routed_experts == 1 and self.soft_slots == 0)

    @property
    def kinds(self):
        """What stands after attention in each layer: "dense" or "moe"."""
        first, n = self.dense_first_layers, self.moe_every_n
        return tuple("moe" if self.n_routed_experts and place > 0 and place % n == 0 else "dense"
                     for layers in self.stacks for place in range(1 - first, layers - first + 1))

    @property
    def stacks(self):
        """Layers of each stack: one stack, or an encoder and a decoder."""
        return (self.n_layers,) if self.encoder_decoder is None else _read_stacks(self.encoder_decoder)

    @property
    def router_matrices(self):
        """Matrices of a router, by the words of `router`: 0, 1 or 2."""
        said = re.split(r"[\W_]+", (self.router or "").lower())
        words = {word for before, word in itertools.pairwise(["", *said])
                 if before not in ("not", "no", "non", "without")}
        if "noisy" in words:
            return 2
        return 0 if words & UNTRAINED and not words & TRAINED else 1

    @property
    def shared_width(self):
        """Width of the hidden layers of all shared experts together."""
        return self.n_shared_experts * (self.shared_hidden or self.expert_hidden or 0)

    @property
    def positions(self):
        """How it knows where a token stands, with the default filled in."""
        return self.pos or ("relative" if self.encoder_decoder else "rotary")

    @property
    def biased(self):
        """What has biases: a set of the meanings of `BIASED`."""
        return _read_biases(self.biases) | ({"qkv"} if self.qkv_bias else set())

    @property
    def norm_vectors(self):
        """Vectors of a norm: its gain, if it has one, and the bias of a LayerNorm where norms have biases."""
        layer_norm = self.norm == "LayerNorm" or (not self.norm and self.biases is True)
        return 0 if self.norm == "without weights" else 1 + (layer_norm and "norms" in self.biased)


def read(description):
    """The Architecture of a dict, as JSON has it, in any spelling that `descriptions` knows.

    None (null) is "not said"; so is False where the default is None.   Raises ValueError, with the field, for unknown
    or missing keys and for bad values.
    """
    if not isinstance(description, dict):
        raise ValueError(f"arch = {description!r}: must be a record of fields")
    known = {f.name: f for f in fields(Architecture)}
    unknown = [str(key) for key in description if key not in known and key not in REMARKS]
    near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
    hint = f", did you mean {near[0]!r}?" if near else ""
    values = ", ".join(reprlib.repr(value) for key, value in description.items() if str(key) in unknown)
    _need(not unknown, "arch", ", ".join(unknown), f"no such field{hint}; it says {values}; there are "
          f"{', '.join(known)}; and as remarks {', '.join(REMARKS)}")
    missing = [name for name, f in known.items() if f.default is MISSING and description.get(name) is None]
    _need(not missing, "arch", ", ".join(missing), "must be said")
    said = {name: descriptions.plain(known[name], value) for name, value in description.items() if name in known
            and value is not None and not (value is False and known[name].default is None)}
    if isinstance(said.get("mla"), dict):
        said["mla"] = _read_latent(said["mla"])
    return Architecture(**said)


def _read_latent(description):
    names = {f.name: f for f in fields(Latent)}
    for key in (*description, *names):
        _need(key in names, f"mla.{ascii(key)[1:-1]}", description.get(key), "no such field; there are "
              + ", ".join(names))
        _need(key in description, f"mla.{key}", None, "must be said")
    return Latent(**{name: descriptions.plain(f, description[name]) for name, f in names.items()})


def _read_biases(words):
    everything = set().union(*BIASED.values())
    if words is None or words is True:
        return everything if words else set()
    named = words.removeprefix("all but ").split("+") if isinstance(words, str) else [None]
    _need(all(name in BIASED for name in named), "biases", words, "must be true, or 'a+b' or 'all but a+b' of "
          + ", ".join(BIASED) + ", or null")
    meant = set().union(*(BIASED[name] for name in named))
    return everything - meant if words.startswith("all but ") else meant


def _read_stacks(words):
    numbers = words.split("+") if isinstance(words, str) else []
    whole = all(number.isdecimal() and len(number) < 6 and int(number) > 0 for number in numbers)
    _need(whole and len(numbers) == 2, "encoder_decoder", words, "must be two numbers of layers, like '12+12', or null")
    return tuple(map(int, numbers))


def _need(condition, name, value, reason):
    if not condition:
        raise ValueError(f"{name} = {value!r}: {reason}")


def _check_count(name, value, least, or_none, most=10**12):
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    _need(whole or (or_none and value is None), name, value, f"must be a whole number from {least} to {most:,}"
          + ", or null" * or_none)


def _check_choice(name, value, choices, or_none):
    fits = any(value is choice or (isinstance(value, str) and value == choice) for choice in choices)
    words = [repr(choice) if isinstance(choice, str) else str(choice).lower() for choice in choices]  # as JSON has them
    _need(fits or (or_none and value is None), name, value, "must be " + " or ".join(words) + ", or null" * or_none)
