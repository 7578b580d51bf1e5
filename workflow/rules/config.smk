# The study. One given by --configfile stands alone; values given without a study change the default one.
import os
import sys
from pathlib import Path

from cisterna import study as studies
from cisterna.training import trackers
from cisterna.errors import UserError

DEFAULT = Path("config/config.yaml")
GIVEN = workflow.overwrite_configfiles
FILES = GIVEN if GIVEN and "study" in config else [DEFAULT, *GIVEN]


def refuse(message):
    """End Snakemake for a mistake of the user's as the command line ends, before anything is written."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(2)


def check(function, *arguments, **options):
    """Call a function of Cisterna's, which may refuse."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        refuse(error)


SOURCE = check(studies.locate, FILES)  # unlike Snakemake, names the line of broken YAML and finds repeated keys

if DEFAULT in FILES:

    configfile: DEFAULT


STUDY = check(studies.load, config, SOURCE)

if check(trackers.chosen):  # before any job runs
    os.environ.setdefault(trackers.PROJECT, STUDY.name)
