"""Experiments: tables of model variants, trained over several seeds, and what they show.

    engine           the machine that runs them: variants x seeds, on any executor
    executors        where the runs train: here, or in parallel processes
    wording          numbers over seeds in words, and verdicts as lists
    archive          stored results of runs that are too long to repeat
    tour             the main job: an MoE between two dense models
    diagrams         the two diagrams of README: a block, and the path of tokens to experts and back
    routers          every router on one small budget
    compare          MoE and dense models at equal steps, FLOPs and time
    effective_size   the dense model that an MoE is worth
    sparse_plan      which sparse models are compared, and for how long each trains
    sparsity         the ways to be sparse next to smaller dense models, for the same training FLOPs
    sparse_report    what that comparison found, in words and tables
    studies          the small runs that the lessons look at
"""
