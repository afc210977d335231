"""Experts on many devices: what leaves each of them in a layer, and how long the slowest takes.

Of R ranks each has E/R experts in a row, and T/R tokens in a row.  One layer forward: the vectors of the tokens go to
where their experts are (dispatch), are computed there, and come back (combine).  The backward pass sends as much
again, and computes twice as much.  No rank goes on before the last has what it waits for: the slowest decides.
"""

import math
from typing import NamedTuple

import numpy as np


def traffic(routing, ranks, once=False):
    """Vectors of width D that each rank sends to each in dispatch: kept assignments, the diagonal is what stays.

    Args:
        routing: Routing of one layer.  Padding and dropped assignments send nothing.
        ranks: R, which divides E and T, padding included.
        once: a token goes to a rank once however many of its experts are there, as between the nodes of DeepSeek-V3
            [arXiv:2412.19437, sec. 3.2.2]; its outputs are then added up there, and one sum comes back.

    Returns count_RR, [from, to].  Raises ValueError for other ranks.
    """
    per_rank = _share("experts", routing.n_experts, ranks)
    tokens_per_rank = _share("tokens", routing.n_tokens, ranks)
    pair = (routing.token_A * ranks + routing.expert_A // per_rank)[routing.kept_A]  # one number for (token, to)
    token, to = np.divmod(np.unique(pair) if once else pair, ranks)
    return np.bincount(token // tokens_per_rank * ranks + to, minlength=ranks**2).reshape(ranks, ranks)


class Seconds(NamedTuple):
    """Time of one layer, forward.

    transfer: of dispatch and combine.
    compute: of the experts, between the two.
    """

    transfer: float
    compute: float

    @property
    def total(self):
        """Of all three steps."""
        return self.transfer + self.compute


class Exchange(NamedTuple):
    """What one layer costs on R ranks, forward.

    sent_R: bytes that leave each rank in dispatch, without those that stay; in combine they come back.
    received_R: bytes that reach each rank in dispatch; in combine they leave.
    rows_R: rows that its experts compute.
    slowest: Seconds, each step as long as on the rank that is slowest at it.
    even: Seconds, if all ranks shared the same bytes and rows evenly.
    """

    sent_R: np.ndarray
    received_R: np.ndarray
    rows_R: np.ndarray
    slowest: Seconds
    even: Seconds

    @property
    def imbalance(self):
        """Rows of the busiest rank over the mean; 1 is even, R is all on one rank, and 1 where there are none."""
        return float(self.rows_R.max() / self.rows_R.mean()) if self.rows_R.any() else 1.0


def exchange(routing, ranks, width, bytes_per_number=2, *, d_hidden, link, flops, once=False):
    """The Exchange of a Routing.

        transfer = 2 * max_r max(sent_r, received_r) / link;   compute = 6 * D * F * max_r rows_r / flops

    Args:
        routing: Routing of one layer.
        ranks: R, see `traffic`.
        width: D.
        bytes_per_number: of the vectors; 2 is bf16.
        d_hidden: F, of SwiGLU experts.
        link: bytes/s that a rank can send, and at the same time receive.
        flops: FLOP/s of a rank.
        once: see `traffic`.

    Raises ValueError for ranks that do not divide E and T, or a number that is not positive.
    """
    for name, value in (("bytes_per_number", bytes_per_number), ("link", link), ("flops", flops)):
        _need(value > 0, name, value, "must be positive")
    row_flops = 6 * _whole("width", width) * _whole("d_hidden", d_hidden)
    moved_RR = traffic(routing, ranks, once) * width * bytes_per_number
    np.fill_diagonal(moved_RR, 0)
    sent_R, received_R, rows_R = moved_RR.sum(axis=1), moved_RR.sum(axis=0), traffic(routing, ranks).sum(axis=0)
    slowest, even = (Seconds(float(2 * moved / link), float(row_flops * rows / flops)) for moved, rows in (
        (np.maximum(sent_R, received_R).max(), rows_R.max()), (sent_R.mean(), rows_R.mean())))
    return Exchange(sent_R, received_R, rows_R, slowest, even)


def slowdown(exchanged):
    """How many times as long a layer takes as with the same bytes and rows spread evenly: from 1, even, to R.

    Capacity sets a limit to the rows: E/R experts have room for E/R * C, which is the capacity factor
    times the mean K * T / R, up to rounding.  Buffers of fixed size always take as long as that.
    exchanged: an Exchange.
    """
    return exchanged.slowest.total / exchanged.even.total if exchanged.even.total else 1.0


def all_to_all_bytes(slots, width, bytes_per_number, ranks, all_to_alls=4):
    """Bytes that leave each rank in one layer, with buffers of fixed size, full or not.

        all_to_alls * (R - 1)/R * E * C * D * bytes                         [Switch, arXiv:2101.03961, sec. 5.4]

    Args:
        slots: E * C, of the queues that a rank's own tokens form: the capacity factor * K * tokens, so that more
            experts change nothing [ST-MoE, arXiv:2202.08906, footnote 10].  The capacity of a Routing is that of all
            ranks' tokens together: there a rank has E * C / R.
        width: D.
        bytes_per_number: of the vectors.
        ranks: R.
        all_to_alls: 4 are dispatch and combine, forward and backward; 2 are forward alone.

    Raises ValueError unless R divides the slots.
    """
    _need(bytes_per_number > 0, "bytes_per_number", bytes_per_number, "must be positive")
    leave = _whole("slots", slots) - _share("slots", slots, ranks)
    return _whole("all_to_alls", all_to_alls) * leave * _whole("width", width) * bytes_per_number


def expected_vectors(n_experts, top_k, ranks, once=False):
    """Vectors that a token sends to other ranks on average, if any K of E experts are as likely, and none is dropped.

        K (R - 1)/R;    once: (R - 1) (1 - binomial(E - E/R, K) / binomial(E, K))

    The second: a rank is left out if all K are among the E - E/R elsewhere.  A rank's T/R tokens send T/R times as
    many, and its experts compute K * T/R rows.

    Args:
        n_experts: E.
        top_k: K.
        ranks: R.
        once: see `traffic`.

    Raises ValueError unless R divides E and K is from 1 to E.
    """
    elsewhere = _whole("n_experts", n_experts) - _share("experts", n_experts, ranks)
    _need(_whole("top_k", top_k) <= n_experts, "top_k", top_k, f"must be at most the {n_experts} experts")
    if not once:
        return top_k * (ranks - 1) / ranks
    if (1 - 1 / ranks) ** top_k < 1e-17:  # a rank is left out less often still, and binomials would have many digits
        return float(ranks - 1)
    ways = math.comb(n_experts, top_k)
    return (ranks - 1) * ((ways - math.comb(elsewhere, top_k)) / ways)


def _share(name, n, ranks):
    _need(n % _whole("ranks", ranks) == 0, "ranks", ranks, f"must divide the {n} {name}")
    return n // ranks


def _whole(name, value):
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
    _need(whole, name, value, "must be a whole number, 1 or more")
    return value


def _need(condition, name, value, reason):
    if not condition:
        raise ValueError(f"{name} = {value!r}: {reason}")
