"""What a run did: what its routers decided, and where its time went.

    route       its decisions as text for a terminal
    explorer    its decisions as a page for a browser, whose rules can be changed
    doctor      the ways in which it may have failed, and what helps
    symptoms    the signs of each way, with the evidence
    causality   which routers look into the future
    rosetta     one batch under the conventions of many systems
    bench       how fast this machine trains and generates
    timers      where in the model the time of a step goes
"""
