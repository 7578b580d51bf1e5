"""The one exception that means "the person who ran this can fix it". Bugs keep their own types and tracebacks."""


class UserError(Exception):
    """A mistake in a config, a data file or an argument.

    The command line prints it without a traceback and exits with code 2, so the message has to carry everything:
    what was wrong, in which file, line or key, what was expected, and what to do.
    """
