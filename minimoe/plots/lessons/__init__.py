"""Pictures that one lesson needs: what is longer than a cell, or shows an idea that lasts.

    sparse_models    01: which weights a token uses
    one_batch        02: what a router prefers, and the queue in front of each expert
    gradients        03: gradients on their way back
    load_balancing   04: how even the work is, and what that does to the loss
    dropping         05: the slots of each expert, and what is dropped
    races            06: a comparison at several budgets
    specialization   07: what experts have learned, next to controls
    paths            07: paths of tokens through the layers
    choices          08: what each router decides, and what it reaches
    downsides        09: what an MoE costs, and how runs fail
    machines         09: an MoE on machines
    cutting          10: what is cut from a trained model
    sparse_training  11: a mask that moves, and the map of all ways to be sparse
"""
