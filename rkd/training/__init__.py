"""Training any model against any losses: the loop, and what it is asked to do besides.

trainer         the loop, and nothing but the loop
phases          parts of a training, each with its own trained weights, rates, noise and losses
tuning          which weights are trained: frozen parts, adapters, rates that fall with the depth
on_policy       batches that are scored on the student's own transcripts
recomputation   activations computed again in the backward pass, to save memory
checkpoint      atomic save, verified load
"""
