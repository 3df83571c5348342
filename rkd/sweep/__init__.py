"""Many runs of one command: which ones, and where.

sweepers    which values are tried: all of them, or what Optuna asks for
launchers   where the commands run: here, side by side, on a cluster
jobs        the sweep itself: commands, what became of each, the best
"""
