"""Training any model against any losses: the loop, and what it is asked to do besides.

trainer      the loop, and nothing but the loop
tuning       which weights are trained: frozen parts, adapters, rates that fall with the depth
layers       layers that are computed again instead of kept, or compiled
on_policy    batches that are scored on the student's own transcripts
checkpoint   atomic save, verified load
"""
