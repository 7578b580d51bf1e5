"""Errors that are no bugs: mistakes of the person who runs Cisterna, and trouble of the machine it runs on.

Bugs keep their own types and tracebacks.
"""

import errno
import re
from collections.abc import Iterator

_CUT_SHORT = -1  # a write that ended early, in a library that hides the reason
# Error number of the operating system -> what it means and what to do.
_TROUBLE = {
    _CUT_SHORT: "a file could not be written to its end: the disk is full, or a quota or limit is reached; free space",
    errno.ENOSPC: "the disk is full; free space on it",
    errno.EDQUOT: "your quota on this disk is used up; free space or ask for more",
    errno.EFBIG: "a file would be larger than is allowed here; raise the limit (ulimit -f)",
    errno.EROFS: "the file system is read-only; make it writable or choose another folder",
    errno.EACCES: "no permission; change the owner or the mode (chown, chmod) or choose another folder",
    errno.EPERM: "not permitted; see its owner and attributes (ls -l, lsattr) or choose another folder",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine; end other processes",
    errno.EIO: "the disk or the file server failed; have it checked",
    errno.ESTALE: "the file server no longer knows an open file (stale file handle); see that the file system is back",
    errno.ENOLCK: "the file system gives no locks; have them enabled (NFS: lockd) or choose another folder",
}
_OF_A_FILE = (errno.EACCES, errno.EPERM)  # without a file name they are bugs
_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_TRAINING = "lower per_device_train_batch_size in the recipe, and raise gradient_accumulation_steps by the same factor"
_LESS_MEMORY = {
    "cpt": f"{_TRAINING}, or lower block_size",
    "sft": _TRAINING,
    "rl": f"{_TRAINING}, or lower max_completion_length",
    "encoder": "lower per_device_train_batch_size in the encoder's training",
    "features": "lower batch_tokens of the encoder",
    "evaluate": "lower batch_size under `evaluation`",
    "predict": "lower batch_size in --options",
}


class UserError(Exception):
    """A mistake in a config, a data file or an argument.

    The command line prints it without a traceback and exits with code 2, so the message has to carry everything:
    what was wrong, in which file, line or key, what was expected, and what to do.
    """


def one_line(error: BaseException) -> str:
    """The whole message of an error, of a library mostly, as one line; its type if it has no message."""
    return " ".join(printable(str(error)).split()) or type(error).__name__


def printable(text: str) -> str:
    r"""A text with escapes (``\x1b``) for the control characters, line breaks except, that a terminal would obey."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def explain(error: Exception, command: str, output: object) -> str | None:
    """The message of an error that the machine caused, in a command that writes to `output`; None for a bug."""
    for link in _causes(error):
        if _is_of_memory(link):
            return (
                f"{output}: out of memory ({one_line(link)}). With more memory (mem_mb and gpu under `resources` of "
                f"the study) the same command resumes from the last saved state; to need less, {less_memory(command)}"
            )
        number = _number(link)
        if number in _TROUBLE:
            path = getattr(link, "filename2", None) or getattr(link, "filename", None) or output
            return f"{path}: {_TROUBLE[number]}. Then rerun the same command: it resumes from the last saved state"
    return None


def less_memory(command: str) -> str:
    """What to change so that a command, or the job of a rule of that name, needs less memory."""
    return _LESS_MEMORY.get(command, "use a machine with more")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)
    )


def _number(error: BaseException) -> int | None:
    """The operating system's number of an error, which libraries in C++ and Rust hide in their text."""
    text = str(error)
    if isinstance(error, OSError):
        if error.errno in _OF_A_FILE and error.filename is None:
            return None
        short_write = error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", text)  # numpy
        return _CUT_SHORT if short_write else error.errno
    if type(error).__name__ == "SafetensorError" and (match := re.search(r"\(os error (\d+)\)", text)):
        return int(match[1])
    if isinstance(error, RuntimeError) and "inline_container.cc" in text and "unexpected pos" in text:  # torch.save
        return _CUT_SHORT
    return None
