"""Pictures that one lesson needs: what is longer than a cell, or shows an idea that lasts.

    sparse_models    01: which weights a token uses
    paths            02: paths of tokens through the layers
    gradients        03: gradients on their way back
    load_balancing   04: who gets the work, and what the loss does about it
    dropping         05: the room in each expert, and who is dropped
    races            06: a comparison at several budgets
    choices          08: what each router decides
    downsides        09: what an MoE costs, and how runs fail
    machines         09: an MoE on machines
"""
