"""The importance of each layer, head, neuron or expert of a trained model on some text: low scores can be removed.

    norm         norm of the unit's weights; needs no text
    activation   mean size of the unit's output, over the tokens that reach it
    taylor       sum over the unit's weights of (gradient * weight)^2      [Molchanov 2019, arXiv:1906.10771, eq. 8]
    gate         mean over sequences of |dL/dg|, g = 1 a factor on the unit's output     [Michel 2019, arXiv:1905.10650]

and for experts only

    load         share of the assignments
    output       change of the layer's output without the expert, the norm of the difference

If no token of the text reached an expert, its score is NaN, except for "norm" and "load".  Layers are scored by
`structured.block_influence` of the `stream`.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minimoe import batches, model, parameters, require
from minimoe.config import fields
from minimoe.moe import dense, experts, losses
from minimoe.sparsity import masks, structured

METHODS = ("norm", "activation", "taylor", "gate")
OF_EXPERTS = ("load", "output")


class Kind(NamedTuple):
    """The arrays of a kind of unit.

    part: part of the block, "attention" or "network".   letters: the axes that number the units.
    names: their arrays; the last one writes their output.
    """

    part: str
    letters: str
    names: tuple


KINDS = {
    "heads": Kind("attention", "G", ("w_q_DHP", "w_k_DGP", "w_v_DGP", "w_o_HPD")),
    "neurons": Kind("network", "EF", experts.NAMES),
    "dense neurons": Kind("network", "J", dense.NAMES),
    "shared": Kind("network", "J", tuple(f"shared.{name}" for name in dense.NAMES)),
    "experts": Kind("network", "E", experts.NAMES),
}
"""Units -> Kind.  A head is a key head with its query heads, since they can only be removed together."""


class Importance(NamedTuple):
    """Scores of the units of each layer that has them; higher is more important.

    scores: layer -> score_G, score_EF, score_J or score_E.   unreached: layer -> experts that no token reached.
    repeat: query heads per head; 1 for other units.
    """

    scores: dict
    unreached: dict
    repeat: int = 1

    def keep(self, n):
        """The masks that keep the n highest scores of each layer, or of each expert if its neurons are scored.

        Returns layer -> mask, as `structured.shrink` reads it.  Ties drop the lowest number first.
        Raises ValueError if a score is unknown, with the experts that no token reached.
        """
        kept = {}
        for layer, score in self.scores.items():
            if np.isnan(score).any():
                raise ValueError(f"layer {layer}: no token of the text reached the experts "
                                 f"{fields.listed(self.unreached[layer], 8)}, so their importance is unknown; "
                                 "a larger calibration may reach them; score = 'norm' needs none")
            require.whole("n", n, 1, score.shape[-1])
            rows = score.reshape(-1, score.shape[-1])
            mask = np.stack([masks.lowest(row, len(row) - n) for row in rows]).reshape(score.shape)
            kept[layer] = mask.repeat(self.repeat, axis=-1)
        return kept


def importance(params, config, kind, method, tokens_BS=None, targets_BS=None):
    """The Importance of all units of a kind.

    Args:
        params: name -> array, of the config.
        config: ModelConfig.
        kind: a name of KINDS.
        method: a name of METHODS, or for experts also of OF_EXPERTS.
        tokens_BS: calibration text.
        targets_BS: the token that follows each, for "taylor" and "gate".
    Raises ValueError if a method lacks what it needs, or the model has no such units.
    """
    model.check_params(params, config)
    require.one_of("kind", kind, KINDS)
    require.one_of("method", method, METHODS + OF_EXPERTS * (kind == "experts"))
    for name, given in (("tokens_BS", tokens_BS), ("targets_BS", targets_BS if method in ("taylor", "gate") else ())):
        if given is None and method != "norm":
            raise ValueError(f"{method} needs {name}, calibration text")
    layers = _layers(params, config, kind)
    if not layers:
        raise ValueError(f"the model has no {kind}: its layers are {', '.join(config.layer_kinds)}")
    scores, count = SCORES[method](params, config, kind, layers, tokens_BS, targets_BS)
    unreached = {i: np.flatnonzero(count[i] == 0).tolist() for i in layers if i in count and not count[i].all()}
    for i, lost in unreached.items():
        if method != "load" and "E" in KINDS[kind].letters:
            scores[i][lost] = np.nan
    return Importance(scores, unreached, config.n_heads // config.kv_heads if kind == "heads" else 1)


def stream(params, tokens_BS, config):
    """The residual stream before the first block and after each block: x_LTD, with one layer more than the model.

    tokens_BS: whole numbers in [0, V).
    """
    tokens_BS, _ = model.check_inputs(params, config, tokens_BS, None)
    _, cache = model.model_forward(params, tokens_BS, config)
    norms = [block.attention_norm for block in cache.blocks] + [cache.norm]
    return np.stack([norm.unit_TD / norm.scale_T1 for norm in norms])  # unit = x * scale


def _layers(params, config, kind):
    """Layer -> the prefix of its units' names, for the layers that have such units."""
    prefixes = {i: f"layers.{i}.{'attention' if KINDS[kind].part == 'attention' else layer_kind}."
                for i, layer_kind in enumerate(config.layer_kinds)}
    return {i: prefix for i, prefix in prefixes.items() if prefix + KINDS[kind].names[-1] in params
            and not (kind == "experts" and config.layer_kinds[i] == "soft")}  # its experts cannot be removed one by one


def _units(arrays, prefix, kind, config, last=False):
    """All numbers of each unit, [its number, ...].  last: only those that write its output."""
    letters, parts = KINDS[kind].letters, []
    for name in KINDS[kind].names[-1 if last else 0:]:
        array, axes = arrays[prefix + name], name.rpartition("_")[2]
        if letters == "G" and "H" in axes:
            where = axes.index("H")
            array = array.reshape(*array.shape[:where], config.kv_heads, -1, *array.shape[where + 1:])
            axes = axes.replace("H", "GQ")
        where = [axes.index(letter) for letter in letters]
        array = np.moveaxis(array, where, range(len(where)))
        parts.append(array.reshape(*array.shape[:len(where)], -1))
    return np.concatenate(parts, axis=-1)


def _norm(params, config, kind, layers, tokens_BS, targets_BS):
    return {i: np.sqrt((_units(params, prefix, kind, config) ** 2).sum(axis=-1)) for i, prefix in layers.items()}, {}


def _taylor(params, config, kind, layers, tokens_BS, targets_BS):
    grads, count = _gradients(params, config, tokens_BS, targets_BS)
    return {i: ((_units(params, prefix, kind, config) * _units(grads, prefix, kind, config)) ** 2).sum(axis=-1)
            for i, prefix in layers.items()}, count


def _gate(params, config, kind, layers, tokens_BS, targets_BS):
    """dL/dg of y = g * (h W) is the sum of W * dL/dW, so it follows from the gradient of the output's weights."""
    scores, count = dict.fromkeys(layers, 0.0), {}
    for row in range(len(tokens_BS)):
        grads, own = _gradients(params, config, tokens_BS[row:row + 1], targets_BS[row:row + 1])
        for i, prefix in layers.items():
            along = _units(params, prefix, kind, config, True) * _units(grads, prefix, kind, config, True)
            scores[i] = scores[i] + np.abs(along.sum(axis=-1)) / len(tokens_BS)
        count = {i: count.get(i, 0) + own[i] for i in own}
    return scores, count


def _activation(params, config, kind, layers, tokens_BS, targets_BS):
    cache, count = _read(params, config, tokens_BS)
    return {i: np.asarray(_put_out(cache.blocks[i], kind, config)) for i in layers}, count


def _put_out(block, kind, config):
    """Mean size of the outputs of a block's units."""
    network = block.feed_forward.cache
    if kind == "heads":
        mix_BGQP = block.attention.attend.mix_BGQP
        B, G, _, P = mix_BGQP.shape
        mix = mix_BGQP.reshape(B, G, config.n_heads // G, -1, P)
        return np.sqrt((mix ** 2).sum(axis=(2, 4))).mean(axis=(0, 2))
    if kind in ("dense neurons", "shared"):
        return _mean_size(network if kind == "dense neurons" else network.shared)
    count_E = network.experts.count_E
    if kind == "neurons":
        return np.stack([_mean_size(network.experts.swiglu[e], n) if n else np.zeros(config.d_hidden)
                         for e, n in enumerate(count_E.tolist())])
    rows = np.split(np.sqrt((network.combine.out_ND ** 2).sum(axis=1)), np.cumsum(count_E)[:-1])
    return [own.mean() if len(own) else 0.0 for own in rows]


def _mean_size(cache, n_rows=None):
    """Mean over tokens of the size of each hidden number, from the cache of a SwiGLU."""
    kept = cache.activation
    return np.abs(kept.gate * kept.sigmoid * kept.up)[:n_rows].mean(axis=0)


def _load(params, config, kind, layers, tokens_BS, targets_BS):
    _, count = _read(params, config, tokens_BS)
    return {i: count[i] / max(count[i].sum(), 1) for i in layers}, count


def _output(params, config, kind, layers, tokens_BS, targets_BS):
    cache, count = _read(params, config, tokens_BS)
    scores = {}
    for i, prefix in layers.items():
        norm, weights = cache.blocks[i].feed_forward_norm, parameters.scope(params, prefix)
        x_TD = norm.unit_TD * norm.gain_D
        out_ETD, others_EE = structured.every_output(x_TD, weights), ~np.eye(config.n_experts, dtype=bool)
        y_TD = structured.routed_output(x_TD, weights, config, out_ETD, np.ones(config.n_experts, bool))
        scores[i] = np.array([np.linalg.norm(structured.routed_output(x_TD, weights, config, out_ETD, kept_E) - y_TD)
                              for kept_E in others_EE])
    return scores, count


SCORES = {"norm": _norm, "activation": _activation, "taylor": _taylor, "gate": _gate, "load": _load, "output": _output}


def _read(params, config, tokens_BS):
    """The cache of a forward pass, and layer -> rows of each expert."""
    tokens_BS, _ = model.check_inputs(params, config, tokens_BS, None)
    (_, routings), cache = model.model_forward(params, tokens_BS, config)
    return cache, _rows(config, routings)


def _gradients(params, config, tokens_BS, targets_BS):
    """Gradients of the cross-entropy alone, in evaluation; and layer -> rows of each expert."""
    config = replace(config, **{f"{name}_coef": 0.0 for name in losses.LOSSES})
    tokens_BS, _ = model.check_inputs(params, config, tokens_BS, None)
    targets_BS = model.check_tokens(targets_BS, config, "targets_BS")
    found = batches.gradients(params, batches.cut(tokens_BS, targets_BS, 1), config, training=False)
    return found.grads, _rows(config, found.routings[0])


def _rows(config, routings):
    """Layer -> rows of each expert."""
    return {i: routing.kept_count_E for i, routing in zip(config.moe_layers, routings, strict=True)}
