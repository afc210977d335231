"""The two diagrams: a block with the numbers of one token, and the path of a few tokens to experts and back.

Both show real routings: one of the lessons' model, the other of a small layer with random weights.
"""

from pathlib import Path

import numpy as np

from minimoe import model, parameters, terminal
from minimoe.config import ModelConfig
from minimoe.experiments import studies
from minimoe.moe import layer
from minimoe.moe.routing import Tokens
from minimoe.plots import block, dispatch_combine, figures, palette

FOLDER = Path("figures")

THEMES = {"": palette.LIGHT, "-dark": palette.DARK}
"""End of a file's name -> how it is painted."""

WORD, LAYER = "example", 2
"""The last letter of the word is the token of the first diagram, in this layer."""

TOKENS, SEED = "cats", 20
"""The tokens of the second diagram, and the seed of its layer."""


def figure(say=terminal.say):
    """Draw both, each for light and for dark pages."""
    for end, theme in THEMES.items():
        figures.save(draw_block(theme), FOLDER / f"block{end}.png")
        figures.save(draw_dispatch(theme), FOLDER / f"dispatch{end}.png")
    say(f"wrote {', '.join(str(FOLDER / f'{name}{end}.png') for name in ('block', 'dispatch') for end in THEMES)}")


def draw_block(theme=palette.LIGHT):
    """The last letter of WORD in a block of the lessons' model."""
    state = studies.model()
    (_, routings), _ = model.model_forward(state.params, state.tokenizer.encode(WORD)[None], state.model_config)
    routing, weights = routings[LAYER], parameters.scope(state.params, f"layers.{LAYER}.")
    return block.transformer_block(
        routing, len(WORD) - 1, WORD, weights,
        f"Each token goes to {routing.n_ranks} of {routing.n_experts} experts", theme)


def small_routing():
    """Four tokens, each sent to two of four experts, with room for two of them in each: one assignment is dropped."""
    config = ModelConfig(d_model=8, n_heads=1, n_experts=4, top_k=2, d_hidden=8, capacity_factor=1.0)
    x_TD = np.random.default_rng(SEED).normal(size=(len(TOKENS), config.d_model))
    weights = parameters.init(layer.weights(config, config.d_model ** -0.5, config.d_model ** -0.5), SEED, float)
    tokens = Tokens.anonymous(np.ones(len(TOKENS), bool))
    (_, routing), _ = layer.moe_forward(x_TD, weights, config, tokens, training=True)
    return routing


def draw_dispatch(theme=palette.LIGHT):
    """The path of those four tokens."""
    return dispatch_combine.dispatch_combine(small_routing(), TOKENS, "Tokens to experts and back", theme)
