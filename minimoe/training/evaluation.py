"""Evaluation: the loss on held-out text, and what the routers do with it."""

from typing import NamedTuple

import numpy as np

from minimoe import model
from minimoe.training import data, record


class Piece(NamedTuple):
    """The results on one batch of held-out text.

    domain: its number.   ce: nats per token.   drop: share of assignments dropped.   drop_position: the same by
    position in the sequence, [L, S].   counts: see `record.counts`.   experts: see `record.probe`.
    """

    domain: int
    ce: float
    drop: float
    drop_position: np.ndarray
    counts: dict
    experts: np.ndarray


def evaluate(params, corpus, model_config, train_config, each=map):
    """Loss and routing on held-out text, the same pieces at every call and for every model.

    Args:
        params: name -> array, the parameters of a model.
        corpus: Corpus, whose held-out text is read.
        model_config, train_config: the shape of the model, and how much text is read.
        each: `map`, or the one of `workers`, to read several batches at the same time.
    Returns a dict: ce, nats per token, the domains weighted by their length; ce_domain, one per domain; drop, share
    dropped.  For the L layers with a router: load, the share of each domain's assignments that go to each expert,
    [domains, L, E]; drop_position, share dropped by position in the sequence, [L, S]; information_token, _position,
    _domain, how much information an assignment's expert carries about it, [L], nats; experts, see `record.probe`.
    """
    sizes = {"token": model_config.vocab_size, "position": train_config.sequence, "domain": len(corpus.held_out),
             "expert": model_config.n_experts}

    def read(domain, batch):
        return _read(params, model_config, domain, batch, sizes)

    domains, drawn = zip(*_held_out_batches(corpus.held_out, train_config), strict=True)
    return _summary(list(each(read, domains, drawn)), [len(stream) for stream in corpus.held_out])


def _held_out_batches(streams, config):
    """The (domain, Batch) pairs of an evaluation, the same at every call."""
    for domain, stream in enumerate(streams):
        rng = np.random.default_rng(0)
        for _ in range(-(-config.eval_batches // len(streams))):
            yield domain, data.sample([stream], rng, config.batch, config.sequence)


def _read(params, config, domain, batch, sizes):
    """The Piece of one batch.  sizes: see `record.counts`."""
    (losses, routings), _ = model.objective_forward(params, batch.tokens_BS, batch.targets_BS, config, training=False)
    return Piece(domain, losses.ce, record.drop(routings), record.drop_position(routings, sizes["position"]),
                 record.counts(routings, domain, sizes), record.probe(routings, sizes["expert"]))


def _summary(pieces, lengths):
    """The dict that `evaluate` returns.  lengths: tokens of each domain's held-out text."""
    by_domain = [[piece for piece in pieces if piece.domain == domain] for domain in range(len(lengths))]
    ce_domain = [np.mean([piece.ce for piece in own]) for own in by_domain]
    total = {label: sum(piece.counts[label] for piece in pieces) for label in pieces[0].counts}
    count_domain = total["domain"].swapaxes(0, 1)
    return {"ce": float(np.average(ce_domain, weights=lengths)), "ce_domain": np.array(ce_domain),
            "load": count_domain / count_domain.sum(axis=2, keepdims=True),
            "drop": float(np.mean([piece.drop for piece in pieces])),
            "drop_position": np.mean([piece.drop_position for piece in pieces], axis=0),
            "experts": np.concatenate([own[0].experts for own in by_domain], axis=1)} | record.information(total)
