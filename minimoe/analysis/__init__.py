"""What a run did: what its routers decided, and how its time was spent.

    route       routing decisions as text for a terminal
    explorer    routing decisions as a web page on which the rules can be changed
    doctor      the ways in which a run may have failed, and what helps
    symptoms    the symptoms of each failure, with the evidence
    causality   which routers look into the future
    rosetta     one batch under the conventions of many systems
    bench       how fast this machine trains and generates
    timers      how the time of a step is spent in the model
"""
