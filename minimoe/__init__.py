"""minimoe: a tiny Mixture-of-Experts transformer in NumPy, forward and backward written by hand.

    import minimoe
    config = minimoe.ModelConfig(vocab_size=65, d_model=128, n_layers=4, n_heads=4, d_hidden=256, n_experts=8, top_k=2)
    params = minimoe.init_params(config, seed=0)
    logits_BSV, routings = minimoe.forward(params, tokens_BS, config)
    losses, grads = minimoe.loss_and_grads(params, tokens_BS, targets_BS, config)
    tokens_S = minimoe.generate(params, config, prompt_S, n_tokens=100, seed=0)
    report = minimoe.gradcheck.check_model(config)
    cost = minimoe.cost.count(config, batch=12, sequence=64)

Names of arrays end in their shape, one letter per axis:

    B batch   S sequence   T = B*S tokens   D model width   H heads   G key and value heads   P head width
    M attended keys   Q = H/G * S queries of one key head   V vocabulary   L layers   E experts
    K choices per token   F expert hidden width   J hidden width of the part that every token uses
    C capacity (slots of an expert)   Z = E*C slots of all experts   A assignments (token, expert)
    N kept assignments   R ranks (devices)   1 one

so x_TD @ w_DF is [tokens, hidden].  A gradient is d + the name of its array: dx_TD, dw_DF.

The parts, each importing only from those above it:

    parameters    a flat dict of name -> array, and its initial values
    interrupts    Ctrl-C, at any moment
    require       checks of arguments, whose errors name the argument
    files         files that are either complete or absent
    terminal      tables and paragraphs as wide as the terminal
    nn            what every transformer has: operations, attention
    moe           what makes it sparse: routers, capacity, experts, losses
    config        ModelConfig and TrainConfig, which validate themselves; presets
    model         blocks, head and objective
    batches       a batch in groups, and its gradients
    sparsity      other kinds of sparsity: pruning, dynamic sparse training
    generation    text from a trained model
    gradcheck     is a hand-written gradient right?
    training      corpus, optimizer, loop, evaluation, checkpoints, runs
    cost          parameters, FLOPs and bytes, counted and in closed form
    plots         figures of plain arrays
    analysis      what a router did: doctor, causality, explorer, benchmark
    experiments   tables of variants that are trained and compared
    course        one page with the whole model; the lessons
    cli           the commands
"""

from minimoe import interrupts

if interrupts.is_program():  # the imports below take most of the time of a short command
    interrupts.end_at_once()

from minimoe import cost, gradcheck  # noqa: E402
from minimoe.batches import loss_and_grads  # noqa: E402
from minimoe.config import ModelConfig, TrainConfig, preset  # noqa: E402
from minimoe.generation.sampling import generate  # noqa: E402
from minimoe.model import Losses, forward, init_params  # noqa: E402

__all__ = ["Losses", "ModelConfig", "TrainConfig", "cost", "forward", "generate", "gradcheck", "init_params",
           "loss_and_grads", "preset"]
__version__ = "0.1.0"
