"""Expected errors: what is wrong, where, and what to do, in one or two lines. Each kind has its exit code."""


class RkdError(Exception):
    """An error that a user can act on; the command line prints its message without a traceback."""

    exit_code = 1


class ConfigError(RkdError):
    """The command line or a YAML file asks for something that does not exist or does not fit together."""

    exit_code = 2


class DataError(RkdError):
    """Speech, noise or rooms are missing, unreadable or cannot be split as asked."""

    exit_code = 3


class CheckpointError(RkdError):
    """A checkpoint or a model folder is missing, damaged or of another kind."""

    exit_code = 4


class ResourceError(RkdError):
    """The machine lacks something: disk, memory, a device, a library, the hub."""

    exit_code = 5


class NumericsError(RkdError):
    """A loss or a gradient is not finite."""

    exit_code = 6


class Interrupted(RkdError):
    """The stage was asked to stop and has saved its state; the same command goes on from there."""

    exit_code = 75
