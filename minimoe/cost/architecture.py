"""The description of a language model in numbers: enough to count its parameters, its FLOPs and its bytes.

Published models and ours are described in the same way, by the keys of a JSON record (`model_files` reads it).  A count
often depends on details, such as which parts have biases or how wide the norm of the queries is.  Each detail that we
have met has a key.
"""

import difflib
import re
from dataclasses import dataclass, fields

FFN_MATRICES = {"swiglu": 3, "geglu": 3, "reglu": 3, "gelu": 2, "relu": 2, "silu": 2, "relu2": 2}
"""`ffn_type` -> matrices of the feed-forward network: a gated one has one more."""

LEARNED, FIXED = ("softmax", "sigmoid", "soft", "noisy"), ("hash", "fixed", "random", "uniform")
"""First words of `router`: those with a matrix ("noisy" has a second one for the noise), and those without."""

BIASED = {"attention": {"qkv", "out"}, "qkv": {"qkv"}, "out": {"out"}, "router": {"router"}, "experts": {"experts"},
          "shared": {"shared"}, "dense": {"dense"}, "norms": {"norms"}, "head": {"head"}}
"""Word of `biases` -> what has them.  qkv and out: the projections to queries, keys and values, and the one back."""

CHOICES = {
    "qk_norm": (True, False, "per head"),
    "qkv_bias": (True, False),
    "sinks": ("1 per head",),
    "shared_gate": ("sigmoid",),
    "ffn_type": tuple(FFN_MATRICES),
    "norm": ("RMSNorm", "LayerNorm", "without weights"),
    "tied_embeddings": (True, False),
    "pos": ("rotary", "learned", "relative", "none"),
}
"""Key -> its values; None is allowed too where it is the default."""

ATTENTIONS = ("full", "window", "linear")
"""What a layer attends to: all earlier tokens; the last `window`; or a fixed-size state, the sum of keys times values,
with a gate and a norm as wide as all heads                     [lightning attention, MiniMax-01, arXiv:2501.08313]"""

MOST = {"n_layers": 10_000}
"""Key of a count -> its limit, by default 10^12.  Layers have a lower one, since they are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention: keys and values are made from one narrow vector per token; only that is cached.

                                                        [DeepSeek-V2, arXiv:2405.04434, sec. 2.1]
    """

    q_lora_rank: int | None = None  # width of the vector that queries are made from; None: from the token itself
    kv_lora_rank: int  # width of the vector that keys and values are made from
    qk_nope_head_dim: int  # width of a head's query and key without positions
    qk_rope_head_dim: int  # and of the rest, with positions
    v_head_dim: int  # width of a head's value

    def __post_init__(self):
        for f in fields(self):
            _check_count(f"mla.{f.name}", getattr(self, f.name), 1, or_none=f.default is None)


@dataclass(frozen=True)
class Architecture:
    """A transformer, by the keys of its description.  None is "no", or the default in the key's comment.

    Raises ValueError with the key, its value and the problem for an impossible description.  An Architecture has
    exactly the types that are declared here, so it can be hashed.
    """

    vocab: int  # tokens in the vocabulary
    d_model: int  # width of the residual stream
    n_layers: int  # layers in all stacks together
    n_heads: int  # query heads per layer
    n_kv_heads: int | None = None  # key and value heads; None: n_heads
    head_dim: int | None = None  # width of a head; None: d_model / n_heads, or from mla
    v_head_dim: int | None = None  # width of a head's value; None: head_dim, or from mla
    mla: Latent | None = None  # latent attention
    qk_norm: bool | str | None = None  # norms of queries and keys, True: as wide as all heads; or shared by all heads
    qkv_bias: bool | None = None  # biases of queries, keys and values
    sinks: str | None = None  # learned scores in addition to those of the tokens
    window: int | None = None  # largest number of tokens that a token attends to, including itself
    attention: tuple | None = None  # of ATTENTIONS, repeated layer by layer; None: "window" if there is one, or "full"
    n_routed_experts: int = 0  # experts that tokens are sent to; 0: a dense model
    top_k: int = 0  # experts per token
    expert_hidden: int | None = None  # width of an expert's hidden layer
    router: str | None = None  # starts with a word of LEARNED or FIXED, the rest is a remark; None: softmax
    soft_slots: int = 0  # Soft MoE: slots per sequence, which tokens are mixed into instead of being routed
    n_shared_experts: int = 0  # experts that every token uses; one is a dense block next to the experts
    shared_hidden: int | None = None  # width of a shared expert's hidden layer; None: expert_hidden
    shared_gate: str | None = None  # a learned gate of the shared experts, computed by one vector
    dense_first_layers: int = 0  # number of first layers that are dense, in each stack
    moe_every_n: int = 1  # every n-th of a stack's remaining layers has experts
    dense_layers: tuple | None = None  # indices, from 0, of further layers that are dense
    dense_ffn_hidden: int | None = None  # width of a dense layer's hidden layer
    ffn_type: str = "swiglu"  # the feed-forward network, one of FFN_MATRICES
    norm: str | None = None  # None: LayerNorm if biases is True, else RMSNorm
    n_norms: int | None = None  # norms per layer; None: 2.  A second attention has one more
    biases: bool | str | None = None  # True: all parts; "a+b": these; "all but a+b": all others of BIASED
    tied_embeddings: bool = False  # whether the head is the table of the embedding
    pos: str | None = None  # kind of positions; None: rotary, or relative with two stacks
    ctx: int | None = None  # longest context, tokens
    encoder_decoder: str | None = None  # "a+b": an encoder of a layers, and a decoder of b that also attends to it

    def __post_init__(self):
        for f in fields(self):
            value, or_none = getattr(self, f.name), f.default is None
            if f.type in (int, int | None):
                _check_count(f.name, value, 0 if f.default == 0 else 1, or_none)
            elif f.name in CHOICES:
                _check_choice(f.name, value, CHOICES[f.name], or_none)
        _check_words("router", self.router, self.router_word, LEARNED + FIXED)
        _read_biases(self.biases)
        check(sum(self.stacks) == self.n_layers, "n_layers", self.n_layers,
              f"must be the sum of encoder_decoder = {self.encoder_decoder!r}")
        check(self.positions != "learned" or self.ctx is not None, "ctx", None, "is required with learned positions")
        self._check_attention()
        self._check_kinds_of_attention()
        self._check_dense_layers()
        self._check_feed_forward()
        self._check_biases()

    def _check_attention(self):
        check(self.n_heads % self.kv_heads == 0, "n_kv_heads", self.n_kv_heads, f"must divide n_heads = {self.n_heads}")
        if self.mla is None:
            check(self.head_dim is not None or self.d_model % self.n_heads == 0, "head_dim", None,
                  f"is required, since n_heads = {self.n_heads} does not divide d_model = {self.d_model}")
            return
        check(isinstance(self.mla, Latent), "mla", self.mla, "must be a record of "
              + ", ".join(f.name for f in fields(Latent)) + ", or null")
        check(self.v_head_dim is None, "v_head_dim", self.v_head_dim, "must be null with mla, which has its own")
        own = self.mla.qk_nope_head_dim, self.mla.qk_rope_head_dim, self.value_width, self.query_width
        check(self.head_dim in (None, *own), "head_dim", self.head_dim, "must be null with mla, which has its own")
        check(not self.qk_norm, "qk_norm", self.qk_norm, "must be null with mla, which has its own norms")

    def _check_kinds_of_attention(self):
        kinds, named = self.attention, f"must be a list of {', '.join(ATTENTIONS)}, no longer than n_layers, or null"
        if kinds is not None:
            fits = isinstance(kinds, tuple) and 1 <= len(kinds) <= self.n_layers
            check(fits and all(kind in ATTENTIONS for kind in kinds), "attention", kinds, named)
            check(len(self.stacks) == 1 or set(kinds) == {"full"}, "attention", kinds, "must be null with two stacks")
            check("linear" not in kinds or not (self.mla or self.qk_norm or self.sinks), "attention", kinds,
                  "linear layers with mla, qk_norm or sinks are not supported")
        used = "window" in self.attentions
        check(used == (self.window is not None), "window", self.window,
              f"{'is required' if used else 'must be null'}: attention = {kinds!r}")
        check(not used or len(self.stacks) == 1, "window", self.window, "must be null with two stacks")

    def _check_dense_layers(self):
        places = self.dense_layers
        fits = isinstance(places, tuple) and all(type(i) is int and 0 <= i < self.n_layers for i in places)
        check(places is None or (fits and len(set(places)) == len(places)), "dense_layers", places,
              f"must be a list of different layers from 0 to {self.n_layers - 1}, or null")
        check(not places or self.n_routed_experts, "dense_layers", places, "must be null without routed experts")

    def _check_feed_forward(self):
        E, moe = self.n_routed_experts, "moe" in self.kinds
        rules = "dense_first_layers, moe_every_n and dense_layers"
        check(moe or E == 0, "n_routed_experts", E, f"{rules} leave no layer for them")
        check("dense" not in self.kinds or self.dense_ffn_hidden is not None, "dense_ffn_hidden", None,
              f"is required: {self.kinds.count('dense')} of {self.n_layers} layers are dense")
        if moe:
            check(1 <= self.top_k <= E, "top_k", self.top_k, f"must be from 1 to n_routed_experts = {E}")
            check(self.expert_hidden is not None, "expert_hidden", None, f"is required with n_routed_experts = {E}")
        for name in ("top_k", "n_shared_experts", "soft_slots", "expert_hidden", "router"):
            value = getattr(self, name)
            check(moe or value in (0, None), name, value, "must be 0 or null without routed experts")
        for name in ("shared_hidden", "shared_gate"):
            value = getattr(self, name)
            check(self.n_shared_experts or value is None, name, value, "must be null without shared experts")

    def _check_biases(self):
        moe = self.n_routed_experts > 0
        absent = {"norms": self.norm != "LayerNorm", "experts": not moe, "shared": self.n_shared_experts == 0,
                  "router": not moe or not (self.router_matrices or self.soft_slots),
                  "dense": "dense" not in self.kinds}
        for word in str(self.biases).split("+"):  # only names are checked: True and "all but" mean whatever exists
            check(not absent.get(word), "biases", self.biases, f"this model has no {word!r} that could have biases")

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
        return (self.v_head_dim or self.query_width) if self.mla is None else self.mla.v_head_dim

    @property
    def attentions(self):
        """What each layer attends to, of ATTENTIONS."""
        cycle = self.attention or (("full",) if self.window is None else ("window",))
        return tuple(cycle[i % len(cycle)] for i in range(self.n_layers))

    @property
    def dense(self):
        """Whether tokens have no choice: there are no experts, or a single one that is not Soft MoE's."""
        return self.n_routed_experts == 0 or (self.n_routed_experts == 1 and self.soft_slots == 0)

    @property
    def kinds(self):
        """The kind of each layer's feed-forward network: "dense" or "moe"."""
        first, n, dense = self.dense_first_layers, self.moe_every_n, set(self.dense_layers or ())
        places = [place for layers in self.stacks for place in range(1 - first, layers - first + 1)]
        return tuple("moe" if self.n_routed_experts and place > 0 and place % n == 0 and i not in dense else "dense"
                     for i, place in enumerate(places))

    @property
    def stacks(self):
        """Number of layers in each stack: one stack, or an encoder and a decoder."""
        if self.encoder_decoder is None:
            return (self.n_layers,)
        numbers = re.fullmatch(r"([1-9]\d{0,4})\+([1-9]\d{0,4})", str(self.encoder_decoder), re.ASCII)
        check(numbers, "encoder_decoder", self.encoder_decoder, "must be two numbers of layers, like '12+12', or null")
        return tuple(map(int, numbers.groups()))

    @property
    def router_word(self):
        """First word of `router`, with the default filled in."""
        return "softmax" if self.router is None else re.match(r"\w*", str(self.router))[0]

    @property
    def router_matrices(self):
        """Number of matrices of a router."""
        return (self.router_word in LEARNED) + (self.router_word == "noisy")

    @property
    def positions(self):
        """The kind of position encoding, with the default filled in."""
        return self.pos or ("relative" if self.encoder_decoder else "rotary")

    @property
    def biased(self):
        """Which parts have biases, a set of the meanings in `BIASED`.  A tied head has them only if it is named."""
        tied = {"head"} if self.tied_embeddings and "head" not in str(self.biases).split("+") else set()
        return _read_biases(self.biases) - tied | ({"qkv"} if self.qkv_bias else set())


def check(condition, name, value, reason):
    """Raises ValueError with the name, the value and the reason unless the condition holds.

    What is required and None is missing in a file, so it is not shown as None.
    """
    if not condition:
        missing = value is None and reason.startswith("is required")
        raise ValueError(f"{name} {reason}" if missing else f"{name} = {value!r}: {reason}")


def did_you_mean(word, known):
    """A hint at the most similar known word, ignoring case; empty if none is similar."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""


def _read_biases(words):
    everything = set().union(*BIASED.values())
    if words is None or isinstance(words, bool):
        return everything if words else set()
    check(isinstance(words, str), "biases", words, "must be true, false, null or words")
    named = words.removeprefix("all but ").split("+")
    for word in named:
        _check_words("biases", words, word, BIASED)
    meant = set().union(*(BIASED[word] for word in named))
    return everything - meant if words.startswith("all but ") else meant


def _check_words(name, value, word, known):
    check(value is None or (isinstance(value, str) and word in known), name, value,
          f"{word!r} is not one of {', '.join(known)}{did_you_mean(word, known)}")


def _check_count(name, value, least, or_none):
    most = MOST.get(name, 10**12)
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    check(whole or (or_none and value is None), name, value, f"must be a whole number from {least} to {most:,}"
          + ", or null" * or_none)


def _check_choice(name, value, choices, or_none):
    fits = any(value is choice or (isinstance(value, str) and value == choice) for choice in choices)
    known = [repr(choice) if isinstance(choice, str) else str(choice).lower() for choice in choices]  # as in JSON
    hint = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    check(fits or (or_none and value is None), name, value,
          f"must be {' or '.join(known)}{', or null' * or_none}{hint}")
