# The study: a complete one of --configfile, or else the default one, changed by --configfile and --config.
import os

from cisterna import study as studies
from cisterna.runtime import snakefile
from cisterna.training import trackers

with snakefile.refusing():
    FILES = snakefile.config_files(workflow, config)
    # Unlike Snakemake, names the line of broken YAML and finds repeated keys.
    SOURCE = studies.locate(FILES) if FILES else "config of the module"


if FILES and str(FILES[0]) not in map(str, workflow.overwrite_configfiles):

    configfile: FILES[0]


with snakefile.refusing():
    STUDY = studies.load(config, SOURCE)
    if trackers.chosen():
        os.environ.setdefault(trackers.PROJECT, STUDY.name)
