"""How a model learns.

    corpus       text, by domain: the embedded one, and files of the user
    tokenizer    characters as numbers
    data         sequences drawn from a corpus, and the held-out part
    optimizer    AdamW with a schedule, and clipping
    loop         the training loop: sample, forward, backward, clip, step
    evaluation   loss and routing on held-out text
    record       what a run writes down of losses, routers and gradients
    divergence   where numbers stop being finite
    checkpoint   a run in one file, and back
    claims       what a checkpoint says of its run, checked
    sealed       arrays in a file that shows when it was damaged or lies
    runs         where runs are on disk; training that can be interrupted and resumed
    pruned       a trained run pruned: a new run, to be trained further
    threads      groups and batches at the same time
    progress     how far a run is, on a screen or in a log
"""
