"""Tokens per second of generation with a KV cache, compared with Mixtral of transformers; and how its time grows.

    python -m tests.benchmarks.generation [--turns N]

Batch 1, greedy, 200 tokens after one, the shape of the preset "shakespeare-cpu" with a context of 1024.
"""

import contextlib
import itertools

import numpy as np

from minimoe import config, model
from minimoe.generation import decoding, sampling
from minimoe.training.threads import workers
from tests.benchmarks import turns

CONTEXT, N_TOKENS, SEEN = 1024, 200, (1, 256, 768)


def initial():
    """Our model with its initial weights: params, config."""
    model_config, _ = config.preset("shakespeare-cpu", {"max_sequence": CONTEXT})
    return model.init_params(model_config), model_config


@contextlib.contextmanager
def ours():
    """Generation of all the tokens."""
    params, model_config = initial()
    with workers(1):
        yield {"run": lambda: len(sampling.generate(params, model_config, np.array([1]), N_TOKENS, temperature=0))}


@contextlib.contextmanager
def one_token(seen):
    """Generation of one token after this many tokens."""
    params, model_config = initial()
    prompt_S = np.arange(seen) % model_config.vocab_size

    def tokens():
        while True:  # the prompt again now and then, so that no more than a few tokens come on top of it
            yield from sampling.stream(params, model_config, prompt_S, 40, temperature=0)

    stream = tokens()
    with workers(1):
        yield {"run": lambda: next(stream)}


@contextlib.contextmanager
def one_attention(seen):
    """The attention of one token to this many, in all layers, with its projections: the part that has to grow."""
    params, model_config = initial()
    x_1D = np.ones((1, model_config.d_model), np.float32)
    _, decoder = decoding.start(params, model_config, np.arange(seen) % model_config.vocab_size, seen + 1)
    rope = [table_MP[seen:] for table_MP in decoder.rope]

    def run():
        for layer in decoder.layers:
            decoding._attend(x_1D, layer, model_config, rope, seen)

    with workers(1):
        yield {"run": run}


def main():
    """Print both tables."""
    options = turns.parser(__doc__, turns=7).parse_args()
    here, references = "tests.benchmarks.generation", "tests.benchmarks.references"
    specifications = {"minimoe": (here, "ours", {})} | {
        f"Mixtral, {experts}, {threads} thread{'s' * (threads > 1)}": (
            references, "generated", dict(n_tokens=N_TOKENS, context=CONTEXT, experts=experts, threads=threads))
        for experts, threads in itertools.product(("eager", "grouped_mm"), (1, 2))}
    with turns.together(specifications) as contestants:
        seconds, _ = turns.take(contestants, options.turns, repetitions=1)
    print(turns.table(f"{N_TOKENS} tokens, batch 1", "minimoe", seconds))
    for name, times in seconds.items():
        print(f"{name:<44}{N_TOKENS / np.median(times):>9.0f} tokens per second")
    specifications = {(build, seen): (here, build, dict(seen=seen)) for seen in SEEN
                      for build in ("one_token", "one_attention")}
    with turns.together(specifications) as contestants:
        seconds, _ = turns.take(contestants, 4 * options.turns, repetitions=20)
    print(f"\n{'tokens seen':>11}{'ms per token':>14}{'ratio to 1 seen':>18}{'attention, ms':>16}"
          f"{'the rest, ms':>15}")
    for seen in SEEN:
        whole, part = (seconds[build, seen] for build in ("one_token", "one_attention"))
        growth = turns.spread(whole, seconds["one_token", SEEN[0]])[1]
        print(f"{seen:>11}{np.median(whole) * 1e3:>14.2f}{growth:>18.2f}{np.median(part) * 1e3:>16.2f}"
              f"{np.median(whole - part) * 1e3:>15.2f}")


if __name__ == "__main__":
    main()
