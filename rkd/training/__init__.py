"""Training any model against any losses: the loop, and what it is asked to do besides.

trainer      the loop, and nothing but the loop
settings     what the configuration asks of it
objective    a student and what it is trained on
state        what a checkpoint holds, and how a training goes on from it
tuning       which weights are trained: frozen parts, adapters, rates that fall with the depth
layers       layers that are computed again instead of kept, or compiled
sharding     weights, gradients and optimiser state divided over the ranks
on_policy    batches that are scored on the student's own transcripts
checkpoint   atomic save, verified load
"""
