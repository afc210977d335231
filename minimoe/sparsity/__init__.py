"""The other ways to be sparse: which weights, neurons, heads, experts or layers a model can do without.

    scores       how much a weight counts: magnitude, Wanda, movement, Taylor
    masks        which weights are kept: a count, a count per output, N of M
    sparsegpt    pruning that corrects the weights that stay
    matrices     the parameters that are pruned, seen as matrices
    calibration  the vectors that each matrix of a block multiplies
    pruning      a whole model, block by block
    cuts         a trained model pruned by any method: single weights or whole parts
    schedules    how sparsity rises while a model trains; the lottery ticket's rewinding
    densities    how many weights each matrix gets
    dynamic      one step of SET, RigL and SNFS: drop some weights, grow as many
    masked       masks in a training run: what the loop calls
    importance   how much a head, a neuron or an expert counts on some text
    structured   layers, heads, neurons and experts go: a smaller ordinary model; the best experts; block influence
    upcycling    a dense model's networks copied or split into experts
    merging      groups of experts become their mean; all of them: a dense model
    encodings    sparse matrices as bytes, and back
    savings      what masks save of a model: parameters, FLOPs, bytes
    distillation  a student learns to answer as its teacher does

A mask is a bool array of a parameter's shape, True where a weight is kept.  Weights are [inputs, outputs].
"""
