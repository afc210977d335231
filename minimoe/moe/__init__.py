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
    routers             one file per router
    losses              auxiliary losses that train a router

Papers define the same words differently.  Here, and elsewhere:

    capacity:       C = clip(ceil(factor * K * T / E), 1, T); none, the default, is dropless.  Switch and some ports
                    leave K out; others round down.
    load:           an expert's share of the T * K assignments, before capacity, so that loads sum to 1.  In some code
                    they sum to K; then the balance loss is K times ours.
    balance loss:   mean over layers of E * sum of load * mean probability.  It is 1 if either is even, and can be below
                    1.  One library pools the layers, so that layers that collapse onto different experts look balanced;
                    the GShard paper divides by E^2.
    gates:          rescaled to sum to 1 if K is 2 or more, the raw probability if K = 1.  A rescaled gate with K = 1 is
                    always 1, so its router would never learn from the task: this is refused.
    dropped tokens: they skip the layer on the residual stream, and their other gates do not change.  Some ports rescale
                    these; one adds the input twice.

`python -m minimoe rosetta` shows one batch under the conventions of many systems.
"""
