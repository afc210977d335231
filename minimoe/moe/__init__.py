"""The sparse part of the model: each token goes to a few of many experts.

Two pictures show it with real numbers: figures/block.png (the layer inside its transformer block, `plots/block.py`)
and figures/dispatch.png (dispatch and combine, `plots/dispatch_combine.py`).

    layer               the five steps of an MoE layer, and the five backward steps
    routing             the table of assignments that a router makes and everything else reads
    gates               which K experts a token uses, and the weight of each
    capacity            how many tokens an expert accepts, and which are dropped
    dispatch            tokens to rows sorted by expert, and back
    experts             E SwiGLU networks with stacked weights
    dense               the single SwiGLU network of a dense layer, or of the shared experts
    soft                Soft MoE: experts work on weighted means of tokens
    feed_forward        the three kinds of feed-forward network in one table
    facts               what the rest of the program may ask about a router
    linear_assignment   equally many tokens for each expert, with the largest sum of scores
    telemetry           what a router did, read from its Routing
    routers             one page per router
    losses              auxiliary losses that push a router
"""
