# The study: config/config.yaml or, in its place and not merged into it, what --configfile names.
import os
import sys
from pathlib import Path

from cisterna import study as studies
from cisterna.errors import UserError

DEFAULT = Path("config/config.yaml")
FILES = workflow.overwrite_configfiles or [DEFAULT]


def check(function, *arguments, **options):
    """Call a function; a mistake of the user's ends Snakemake as it ends the command line, before anything is written."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(2)


if len(FILES) == 1:
    check(studies.read, FILES[0])  # unlike Snakemake's loader, names the line and sees a key given twice

if not workflow.overwrite_configfiles:

    configfile: DEFAULT


STUDY = check(studies.load, config, where=", ".join(map(str, FILES)))
