"""How it learns: data, optimiser, loop, checkpoints."""
