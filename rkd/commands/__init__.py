"""What stands beside the stages on the command line: one module a command, each with `run(arguments)`.

help        the words of the command line, and what help says of stages
options     options of a command beside its overrides
folders     what a run folder says of itself
keys        the keys and values of the YAML groups, read from their text
"""
