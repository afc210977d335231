"""Training, evaluation and checkpoints.

    corpus       text, by domain: the embedded one, and the user's files
    tokenizer    characters as numbers
    data         sequences drawn from a corpus, and the held-out part
    optimizer    AdamW with a schedule, and clipping
    loop         the training loop: sample, forward, backward, clip, step
    evaluation   loss and routing on held-out text
    record       what a run records about losses, routers and gradients
    divergence   where numbers stop being finite
    checkpoint   saves a run to one file, and loads it
    claims       validates what a checkpoint claims about its run
    sealed       arrays in a file with a checksum, which reveals damage and false sizes
    runs         where runs are on disk; training that can be interrupted and resumed
    pruned       a new run that starts from a pruned, trained run
    threads      groups and batches in parallel
    progress     the progress of a run, on a screen or in a log
"""
