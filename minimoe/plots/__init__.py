"""Pictures: each function takes plain arrays or records and returns a matplotlib Figure.

    palette             every color, defined once
    figures             how a figure begins, how its axes look, and how it is written
    diagram             boxes, lines and words of a diagram, for light and dark pages
    block               a transformer block with the numbers of one token
    dispatch_combine    tokens to rows sorted by expert, and back
    loss_curves         validation loss against steps
    expert_load         where the assignments go, over time and by domain
    coloured_text       characters in the colors of their experts
    router_comparison   all routers on one budget
    sparsity_comparison  the ways to be sparse: loss against FLOPs and bytes
    pareto              loss against FLOPs, and at equal steps, FLOPs and time
    step_time           where the time of a training step goes
    cost_shares         where parameters, FLOPs and bytes are
    lessons             what one lesson needs
"""
