"""Expert parallelism: the experts of a layer are on several devices.  What each device sends, and how long it takes.

Each of R ranks has E/R consecutive experts and T/R consecutive tokens.  In the forward pass of a layer, the vectors of
the tokens are sent to their experts (dispatch), are processed there, and come back (combine).  The backward pass sends
as much again, and computes twice as much.  Every rank waits for the last one, so the slowest rank sets the time.
"""

import math
from typing import NamedTuple

import numpy as np


def traffic(routing, ranks, once=False):
    """Vectors of width D that each rank sends to each rank in dispatch; the diagonal is what stays.

    Args:
        routing: Routing of one layer.  Padding and dropped assignments send nothing.
        ranks: R, which divides E and T, padding included.
        once: a token is sent to a rank only once, however many of its experts are there, as between the nodes of
            DeepSeek-V3 [arXiv:2412.19437, sec. 3.2.2]; its outputs are then added up there, and one sum comes back.

    Returns count_RR, [from, to].  Raises ValueError if R does not divide E and T.
    """
    per_rank = _share("experts", routing.n_experts, ranks)
    tokens_per_rank = _share("tokens", routing.n_tokens, ranks)
    pair = (routing.token_A * ranks + routing.expert_A // per_rank)[routing.kept_A]  # one number for (token, to)
    token, to = np.divmod(np.unique(pair) if once else pair, ranks)
    return np.bincount(token // tokens_per_rank * ranks + to, minlength=ranks**2).reshape(ranks, ranks)


class Seconds(NamedTuple):
    """Time of one layer, forward.

    transfer: time of dispatch and combine.
    compute: time of the experts, between the two.
    """

    transfer: float
    compute: float

    @property
    def total(self):
        """Time of all three steps."""
        return self.transfer + self.compute


class Exchange(NamedTuple):
    """What one layer costs on R ranks, forward.

    sent_R: bytes that each rank sends to others in dispatch, and gets back in combine.
    received_R: bytes that each rank receives in dispatch, and sends back in combine.
    rows_R: rows that each rank's experts compute.
    slowest: Seconds, where each step takes as long as on its slowest rank.
    even: Seconds, if all ranks shared the same bytes and rows evenly.
    """

    sent_R: np.ndarray
    received_R: np.ndarray
    rows_R: np.ndarray
    slowest: Seconds
    even: Seconds

    @property
    def imbalance(self):
        """Rows of the busiest rank over the mean: 1 is even, R is all on one rank; 1 if there are no rows."""
        return float(self.rows_R.max() / self.rows_R.mean()) if self.rows_R.any() else 1.0


def exchange(routing, ranks, width, bytes_per_number=2, *, d_hidden, link, flops, once=False):
    """The Exchange of a Routing.

        transfer = 2 * max_r max(sent_r, received_r) / link;   compute = 6 * D * F * max_r rows_r / flops

    Args:
        routing: Routing of one layer.
        ranks: R, see `traffic`.
        width: D.
        bytes_per_number: bytes per number in the vectors; 2 is bf16.
        d_hidden: F, of SwiGLU experts.
        link: bytes/s that a rank can send and, at the same time, receive.
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
    """How many times longer a layer takes than with the same bytes and rows spread evenly: from 1 (even) to R.

    Capacity limits the rows: E/R experts have room for E/R * C, which is the capacity factor times the mean
    K * T / R, up to rounding.  Fixed-size buffers always take as long as this limit.
    exchanged: an Exchange.
    """
    return exchanged.slowest.total / exchanged.even.total if exchanged.even.total else 1.0


def all_to_all_bytes(slots, width, bytes_per_number, ranks, all_to_alls=4):
    """Bytes that each rank sends in one layer with fixed-size buffers, full or not.

        all_to_alls * (R - 1)/R * E * C * D * bytes                         [Switch, arXiv:2101.03961, sec. 5.4]

    Args:
        slots: E * C, of the queues that a rank's own tokens form: the capacity factor * K * tokens, so the number of
            experts does not matter [ST-MoE, arXiv:2202.08906, footnote 10].  The capacity of a Routing is for the
            tokens of all ranks together; each rank then has E * C / R slots.
        width: D.
        bytes_per_number: bytes per number in the vectors.
        ranks: R.
        all_to_alls: 4 for dispatch and combine, forward and backward; 2 for the forward pass alone.

    Raises ValueError unless R divides the slots.
    """
    _need(bytes_per_number > 0, "bytes_per_number", bytes_per_number, "must be positive")
    leave = _whole("slots", slots) - _share("slots", slots, ranks)
    return _whole("all_to_alls", all_to_alls) * leave * _whole("width", width) * bytes_per_number


def expected_vectors(n_experts, top_k, ranks, once=False):
    """Vectors that a token sends to other ranks on average, if all sets of K experts are equally likely and none is
    dropped.

        K (R - 1)/R;    once: (R - 1) (1 - binomial(E - E/R, K) / binomial(E, K))

    In the second formula, a rank gets nothing if all K experts are among the E - E/R on other ranks.  A rank's T/R
    tokens send T/R times as many, and its experts compute K * T/R rows.

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
    if (1 - 1 / ranks) ** top_k < 1e-17:  # even rarer than that; the binomials would have many digits
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
