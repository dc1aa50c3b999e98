"""The errors a user can meet, each with the exit code that a scheduler acts on."""


class NmfDaskError(Exception):
    """Base of every error that is reported in one message, without a traceback."""

    exit_code = 1


class ConfigurationError(NmfDaskError):
    """The command, the job file or the environment asks for something that cannot be done."""

    exit_code = 2


class InputDataError(NmfDaskError):
    """The corpus or the model folder is not what the job needs."""

    exit_code = 65


class RetryableError(NmfDaskError):
    """The job was stopped by something that may pass: lost workers, a lock that is held, a full disk."""

    exit_code = 75
