"""What each router costs compared with softmax top-k: forward and backward of the router alone, in pairs.

    python -m tests.benchmarks.routers
"""

import numpy as np
import threadpoolctl

from minimoe.config import ModelConfig
from minimoe.moe import feed_forward, losses, routers
from minimoe.moe.routers import ROUTERS
from minimoe.moe.routing import Tokens, zero_gradient
from tests.benchmarks import turns

SEQUENCES, LENGTH = 32, 128
EXCEPTED = ("base", "sinkhorn", "soft")
"""A plan over all tokens, or all tokens in each slot: their cost is stated, not limited."""


def case(name, n_experts=16, d_model=128):
    """A function that runs the router of a layer forward and backward (Soft MoE: the layer)."""
    config = ModelConfig(d_model=d_model, n_experts=n_experts, d_hidden=64, router=name,
                         top_k=ROUTERS[name].FACTS.top_k or 2, max_sequence=LENGTH)
    rng = np.random.default_rng(0)
    tokens = Tokens.of_batch(rng.integers(0, 65, (SEQUENCES, LENGTH)))
    x_TD = rng.normal(size=(SEQUENCES * LENGTH, d_model)).astype(np.float32)
    kind = config.layer_kinds[0]
    weights = {name: rng.normal(0, d_model ** -0.5, w.shape).astype(np.float32) for name, w in
               feed_forward.weights(config, kind, 1.0, 1.0).items()}
    if kind == "soft":
        return lambda: feed_forward.kind_backward(
            x_TD, None, feed_forward.kind_forward(x_TD, weights, config, kind, tokens)[1])
    policy = routers.POLICIES[name]

    def run():
        routing, cache = policy.forward(x_TD, weights, config, tokens, True, np.random.default_rng(1))
        grad = zero_gradient(routing)
        if routing.chance_TE is not None:
            _, load_cache = losses.load_forward(routing)
            grad = grad._replace(dchance_TE=losses.load_backward(0.1, load_cache))
        policy.backward(grad, cache)

    return run


def main():
    """Print milliseconds, and the ratio to softmax top-k in pairs run one after the other."""
    parser = turns.parser(__doc__)
    parser.add_argument("--pairs", type=turns.count, default=40, help="timings of each (default: 40)")
    options = parser.parse_args()
    reference = case("softmax_topk")
    print(f"T={SEQUENCES * LENGTH} D=128 E=16 float32, forward and backward, {options.pairs} pairs\n")
    print(f"{'router':<15}{'ms':>8}{'ratio to softmax_topk':>24}{'(10-90 %)':>16}")
    with threadpoolctl.threadpool_limits(2):
        for name in ROUTERS:
            run = case(name)
            run()
            reference()
            pairs = [(turns.timed(run)[0], turns.timed(reference)[0]) for _ in range(options.pairs)]
            low, middle, high = turns.spread(*zip(*pairs, strict=True))
            own = np.median(pairs, axis=0)[0] * 1e3
            note = "  (excepted)" if name in EXCEPTED else "" if middle <= 3 else "  ABOVE 3"
            print(f"{name:<15}{own:>8.2f}{middle:>24.2f}{f'({low:.2f} to {high:.2f})':>16}{note}")


if __name__ == "__main__":
    main()
