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

Papers define the same words differently.  Here, and elsewhere:

    capacity        C = clip(ceil(factor * K * T / E), 1, T); none, the default, is dropless.  Switch and some ports
                    leave K out; others round down.
    load            an expert's share of the T * K assignments, before capacity, so that loads sum to 1.  Some code lets
                    them sum to K; then the balance loss is K times ours.
    balance loss    mean over layers of E * sum of load * mean probability: 1 if either is even, and it can be below 1.
                    One library pools the layers, so that layers which collapse onto different experts look balanced;
                    the paper of GShard divides by E^2.
    gates           rescaled to sum to 1 if K is 2 or more, the raw probability if K = 1.  A rescaled gate with K = 1 is
                    always 1, and its router never learns from the task: that is refused.
    dropped tokens  skip the layer on the residual stream; their other gates stay as they are.  Some ports rescale them;
                    one adds the input twice.

`python -m minimoe rosetta` shows one batch under the conventions of eight systems.
"""
