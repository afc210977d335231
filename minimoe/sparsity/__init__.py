"""Other kinds of sparsity: which weights, neurons, heads, experts or layers a model can do without.

    scores       the importance of single weights: magnitude, Wanda, movement, Taylor
    masks        which weights are kept: a count, a count per output, N of M
    sparsegpt    pruning that corrects the remaining weights
    matrices     the parameters that can be pruned, viewed as matrices
    calibration  the input vectors of each matrix in a block
    pruning      prunes a whole model, block by block
    cuts         prunes a trained model by any method: single weights or whole parts
    schedules    how sparsity rises during training; the rewinding of lottery tickets
    densities    how many weights each matrix gets
    dynamic      one step of SET, RigL and SNFS: drop some weights, grow equally many
    masked       masks in a training run: the functions that the loop calls
    importance   the importance of heads, neurons or experts on some text
    structured   removes layers, heads, neurons and experts, which leaves a smaller ordinary model
    upcycling    copies or splits the networks of a dense model into experts
    merging      replaces groups of experts by their mean; a single group gives a dense model
    encodings    sparse matrices as bytes, and back
    savings      what masks save: parameters, FLOPs, bytes
    distillation  trains a student to imitate the outputs of a teacher

A mask is a bool array of a parameter's shape, True where a weight is kept.  Weights are [inputs, outputs].
"""
