"""Which routers look into the future?  Measured for every router, capacity and drop order, and compared with what they
declare.

A language model predicts the next token, so the output of a token must not depend on later ones.  Four questions are
put to the running code on many random inputs:

    future   does changing the last token change where an earlier token goes, whether it is kept, or its gate?
             (for Soft MoE, which does not route tokens: does it change the output of an earlier token?)
    prefix   does the beginning of a sequence have a different output on its own: f(x[:t]) != f(x)[:t]?
    batch    does a sequence have a different output if the sequences of the batch are reordered?
    cached   does decoding token by token, with a KV cache, give different logits than one pass?
"""

from dataclasses import dataclass, replace

import numpy as np

from minimoe import model, terminal
from minimoe.config import ModelConfig
from minimoe.generation import decoding
from minimoe.moe import capacity, feed_forward, routers
from minimoe.moe.routing import Tokens

CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, d_hidden=5, n_experts=4, top_k=2, max_sequence=16)
SAME = 1e-9
"""Outputs that differ by less count as equal, since matrix products of different sizes round differently."""


@dataclass(frozen=True)
class Row:
    """One router with one capacity and drop order, in training or in evaluation.

    future, prefix, batch, cached: share of the trials in which it made a difference (1).  None where the question makes
    no sense: training does not decode, and random choices always differ for a different length or order.
    declared: whether router and drop order are declared causal.
    """

    router: str
    capacity_factor: float | None
    drop_order: str
    training: bool
    future: float
    prefix: float | None
    batch: float | None
    cached: float | None
    declared: bool

    @property
    def as_declared(self):
        """Whether the future never mattered if declared causal; and mattered in some trial if the router is not.

        A drop order that is not declared causal need not leak: by rank there are no second choices with K = 1, and
        round-robin experts do not depend on the last token's content.
        """
        return self.future == 0 if self.declared else self.future > 0 or self.capacity_factor is not None


def study(trials=50, names=tuple(routers.ROUTERS), factors=(None, 0.75), orders=tuple(capacity.ORDERS), rounds=range):
    """A list of Rows, for every router x capacity x drop order: each in training, and then in evaluation.

    trials: random inputs for each.  factors: capacity factors; None is dropless, where the order has no effect, so one
    row represents all orders.  rounds: counts the configurations, as `range` does; a progress bar can.
    """
    facts = {name: routers.ROUTERS[name].FACTS for name in names}
    configs = [replace(CONFIG, router=name, top_k=own.top_k or CONFIG.top_k, capacity_factor=factor,
                       eval_capacity_factor=factor, drop_order=order)
               for name, own in facts.items() for factor in (factors if not own.soft else factors[:1])
               for order in (orders if factor is not None else orders[:1])]
    return [examine(config, training, trials) for _, config in zip(rounds(len(configs)), configs, strict=True)
            for training in (True, False)]


def examine(config, training, trials):
    """The Row of one configuration."""
    factor, order = capacity.rules(config, training)
    random = training and not _same(_run(config, training, *_inputs(config, 0), seed=0),
                                    _run(config, training, *_inputs(config, 0), seed=1))

    def share(differs):
        return float(np.mean([differs(config, training, seed) for seed in range(trials)]))

    return Row(config.router, factor, config.drop_order, training, future=share(_future_matters),
               prefix=None if random else share(_prefix_differs), batch=None if random else share(_batch_order_matters),
               cached=None if training else share(_cached_differs),
               declared=_promised(config.router, training) and (factor is None or capacity.ORDERS[order].causal))


def _promised(name, training):
    """Whether the router itself is declared causal."""
    facts = routers.ROUTERS[name].FACTS
    return facts.causal if training else facts.causal_in_evaluation


def report(rows, detail=False):
    """The study as text: which look into the future; with detail also one line per configuration, and how to read it.
    """
    answer = terminal.fill(_answer(rows), hanging="  ")
    if not detail:
        return f"{answer}\n\n{terminal.fill(QUESTION)}"
    lines = [("router", "drop order", "train:\nfuture", "prefix", "batch",
              "eval:\nfuture", "prefix", "batch", "cached")]
    for train, evaluate in _pairs(rows):
        lines.append((train.router, "dropless" if train.capacity_factor is None else train.drop_order,
                      *map(_cell, (train.future, train.prefix, train.batch)),
                      *map(_cell, (evaluate.future, evaluate.prefix, evaluate.batch, evaluate.cached))))
    return "\n\n".join([answer, terminal.table(lines, left=(0, 1), repeat=2), terminal.fill(NOTES, hanging="  ")])


QUESTION = """\
A setting looks into the future if changing the last token changes an earlier one's experts or gates, or whether it is \
kept. Declared is what the router and the drop order promise.
How often, and whether a prefix, a batch or cached decoding makes a difference, setting by setting: --detail"""


def _answer(rows):
    pairs = list(_pairs(rows))
    wrong = [f"{train.router} ({_room(train)})" for train, evaluate in pairs
             if not (train.as_declared and evaluate.as_declared)]
    declared = (f"{len(wrong)} of {len(pairs)} settings are NOT as declared: {', '.join(wrong)}." if wrong
                else f"All {len(pairs)} settings are as declared.")
    ahead = [(train, evaluate) for train, evaluate in pairs if train.capacity_factor is None]
    leaky = {train.router for train, evaluate in ahead if max(train.future, evaluate.future) > 0}
    queues = [(train, evaluate) for train, evaluate in pairs
              if train.capacity_factor is not None and train.router not in leaky]
    found = [f"Routers that look into the future: {_ahead(ahead, 'router')}.",
             f"Drop orders that do, when experts are full: {_ahead(queues, 'drop_order')}."]
    return "\n".join([declared, *found] if wrong else [*found, declared])


def _ahead(pairs, name):
    """The names of those that look ahead, in words."""
    always = dict.fromkeys(getattr(evaluate, name) for _, evaluate in pairs if evaluate.future > 0)
    training = dict.fromkeys(getattr(train, name) for train, _ in pairs if train.future > 0)
    only = [found for found in training if found not in always]
    parts = [", ".join(always)] * bool(always) + [f"in training only: {', '.join(only)}"] * bool(only)
    return "; ".join(parts) or "none"


def _pairs(rows):
    """Each configuration in training and in evaluation."""
    return zip(rows[::2], rows[1::2], strict=True)


def _room(row):
    return "dropless" if row.capacity_factor is None else f"{row.capacity_factor:g}, {row.drop_order}"


def _cell(share):
    return "?" if share is None else "-" if share == 0 else f"{share:.0%}"


NOTES = """\
The numbers are the shares of random trials in which it made a difference; - is none. With a drop order the experts \
have a limited capacity.
future: changing the last token changed an earlier token's experts or gates, or whether it was kept.
prefix: f(x[:t]) is not f(x)[:t].
batch: swapping sequences changed their outputs.
cached: decoding token by token gave different logits than one pass.
?: the choice is random, so there is nothing to compare.
declared: what the router (its facts causal and causal_in_evaluation) and the drop order declare."""


def _inputs(config, seed, n_sequences=1):
    """Random vectors, the vocabulary numbers of their tokens, and the weights of a layer."""
    rng = np.random.default_rng(seed)
    shapes = feed_forward.weights(config, config.layer_kinds[0], 1.0, 1.0)
    weights = {name: rng.normal(size=w.shape) for name, w in shapes.items()}
    id_BS = rng.integers(0, config.vocab_size, (n_sequences, config.max_sequence))
    return rng.normal(size=(*id_BS.shape, config.d_model)), id_BS, weights


def _run(config, training, x_BSD, id_BS, weights, seed=0):
    """y_BSD and the Routing of one layer; Soft MoE has none."""
    (y_TD, routing), _ = feed_forward.kind_forward(
        x_BSD.reshape(-1, config.d_model), weights, config, config.layer_kinds[0], Tokens.of_batch(id_BS),
        training=training, rng=np.random.default_rng(seed))
    return y_TD.reshape(x_BSD.shape), routing


def _same(one, other):
    return bool(np.abs(one[0] - other[0]).max() < SAME)


def _decisions(y_BSD, routing, n_tokens):
    """Gates of the first tokens by expert, all and kept ones; or their outputs, if there are no assignments."""
    if routing is None:
        return y_BSD[:, :n_tokens]
    gate_TE = np.zeros((2, routing.n_tokens, routing.n_experts))
    gate_TE[0, routing.token_A, routing.expert_A] = routing.gate_A
    gate_TE[1, routing.token_A, routing.expert_A] = routing.gate_A * routing.kept_A
    return gate_TE[:, :n_tokens]


def _future_matters(config, training, seed):
    x_BSD, id_BS, weights = _inputs(config, seed)
    before = _decisions(*_run(config, training, x_BSD, id_BS, weights), config.max_sequence - 1)
    rng = np.random.default_rng([seed, 1])
    x_BSD, id_BS = x_BSD.copy(), id_BS.copy()
    x_BSD[0, -1], id_BS[0, -1] = rng.normal(size=config.d_model), (id_BS[0, -1] + 1) % config.vocab_size
    after = _decisions(*_run(config, training, x_BSD, id_BS, weights), config.max_sequence - 1)
    return bool(np.abs(after - before).max() > SAME)


def _prefix_differs(config, training, seed):
    x_BSD, id_BS, weights = _inputs(config, seed)
    cut = config.max_sequence // 2
    whole, _ = _run(config, training, x_BSD, id_BS, weights)
    part, _ = _run(config, training, x_BSD[:, :cut], id_BS[:, :cut], weights)
    return bool(np.abs(whole[:, :cut] - part).max() > SAME)


def _batch_order_matters(config, training, seed):
    x_BSD, id_BS, weights = _inputs(config, seed, n_sequences=3)
    y_BSD, _ = _run(config, training, x_BSD, id_BS, weights)
    turned, _ = _run(config, training, x_BSD[::-1], id_BS[::-1], weights)
    return bool(np.abs(turned[::-1] - y_BSD).max() > SAME)


def _cached_differs(config, training, seed):
    params = model.init_params(config, seed, np.float64)
    tokens_S = np.random.default_rng(seed).integers(0, config.vocab_size, config.max_sequence)
    logits_BSV, _ = model.forward(params, tokens_S[None], config)
    logit_V, decoder = decoding.start(params, config, tokens_S[:1], len(tokens_S))
    worst = np.abs(logits_BSV[0, 0] - logit_V).max()
    for i in range(1, len(tokens_S)):
        worst = max(worst, np.abs(logits_BSV[0, i] - decoding.step(decoder, tokens_S[i], i)).max())
    return worst > SAME
