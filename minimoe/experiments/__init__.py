"""Experiments: tables of model variants, trained over several seeds, and what they show.

    archive          what is kept of runs that are too long to repeat
    tour             the main job: an MoE between two dense models
    routers          every router on one small budget
    compare          MoE and dense models at equal steps, FLOPs and time
    effective_size   the dense model that an MoE is worth
    studies          the small runs that the lessons look at
"""
