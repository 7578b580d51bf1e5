"""The line of a prompt that says how an answer is written.

It is in the prompts of all adapters (option `answer_form`), and of the built-in tasks that ask for it (a key of the
same name). A strict parser scores a right answer in another form as 0, so a base model or a cold start that was never
told the form looks as if it knew nothing. The line of adapters does not list the labels. Not for parsing answers:
`cisterna.scoring.answers`.
"""

from cisterna.constants import ANSWER


def line(what: str, *, stated: bool) -> str:
    """The line, which ends with a newline, for an answer that is `what`; nothing unless it is `stated`."""
    return f'End with the line "{ANSWER}X", where X is {what}.\n' if stated else ""
