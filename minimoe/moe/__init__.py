"""What makes it sparse: tokens go to a few experts of many.

    layer               the five steps of an MoE layer, and the five of the way back
    routing             the table of assignments that a router makes and everything else reads
    gates               which K experts a token takes, and how much each counts
    capacity            how many tokens an expert takes, and which are dropped
    dispatch            tokens to rows sorted by expert, and back
    experts             E SwiGLU networks with stacked weights
    dense               the one SwiGLU network of a dense layer, or of shared experts
    soft                Soft MoE: experts work on weighted means of tokens
    feed_forward        the three kinds of layer in one table
    facts               what others may ask about a router
    linear_assignment   equally many tokens to each expert, with the largest sum of scores
    telemetry           what a router did, read from its Routing
    routers             one page per router
    losses              auxiliary losses that push a router
"""
