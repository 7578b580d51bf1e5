"""`snakemake --logger cisterna`: how far the study is, in place of Snakemake's blocks about jobs.

Snakemake finds the plugin by the name of this package and passes it the records of its log, in a thread of their own.
Here they are told apart; what is shown of them is decided in `cisterna.ops.run_view`. Only a run that starts jobs is
shown so: all else (a dry run, `--report`, `--lint`, ...) is written as Snakemake writes it. The full log is in
.snakemake/log in any case.
"""

import logging
import sys
from typing import TYPE_CHECKING

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from cisterna.ops.run_view import View

# Snakemake gives no event for these, so they are known by their text.
NOT_SHOWN = "Assuming unrestricted shared filesystem usage"
NOTHING = "Nothing to be done"
AGAIN = "Trying to restart job "
STOPPING = ("Terminating processes on user request", "Will exit after finishing currently running jobs")
FAILED = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete successfully")


class LogHandler(LogHandlerBase):
    """Shows the run that Snakemake's records are about."""

    def __post_init__(self) -> None:
        # Every start of Snakemake loads all plugins, so this module imports what it needs when it is used.
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

        settings = self.common_settings
        quiet = settings.quiet or ()
        self._snakemakes = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=sys.stdout if settings.stdout else sys.stderr,
            formatter=DefaultFormatter(quiet, settings.show_failed_logs),
            filter=DefaultFilter(quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds),
        )
        self._is_run = False  # whether Snakemake is past its preparations, in a run that starts jobs
        self._view: View | None = None
        self._held: dict[int | None, logging.LogRecord] = {}  # thread -> an error that may be about a job's end
        self._group_logs: dict[int | None, list[str]] = {}  # thread -> logs of the group whose jobs' errors follow

    # What Snakemake asks about a plugin.
    writes_to_stream = property(lambda self: True)
    writes_to_file = property(lambda self: False)
    has_filter = property(lambda self: True)
    has_formatter = property(lambda self: True)
    needs_rulegraph = property(lambda self: False)

    def emit(self, record: logging.LogRecord) -> None:
        """Show what a record changes. An error in here is printed, and the run goes on."""
        try:
            event = getattr(record, "event", None)
            if event == LogEvent.WORKFLOW_STARTED and not self.common_settings.dryrun:
                self._is_run = True
            elif not self._is_run:
                if self.common_settings.dryrun or not record.getMessage().startswith(NOT_SHOWN):
                    self._snakemakes.handle(record)
            elif event == LogEvent.ERROR:
                self._release(record.thread)
                self._held[record.thread] = record
            elif event == LogEvent.JOB_ERROR:
                self._job_failed(record)
            else:
                self._release(record.thread)
                self._other(event, record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Snakemake has ended."""
        try:
            for thread in list(self._held):
                self._release(thread)
            if self._view:
                self._view.end()
        finally:
            self._view = None
            super().close()

    def _other(self, event: LogEvent | None, record: logging.LogRecord) -> None:
        values = vars(record)
        if event == LogEvent.RUN_INFO:
            from cisterna.ops.run_state import Run
            from cisterna.ops.run_view import View, console_for

            self._view = View(console_for(sys.stderr, not self.common_settings.nocolor), Run(values["stats"]))
        elif event is None:
            self._text(record)
        elif self._view is None:
            return
        elif event == LogEvent.JOB_STARTED:
            self._view.begin()
        elif event == LogEvent.JOB_INFO:
            self._view.started(*(values[key] for key in ("jobid", "rule_name", "output", "log")))
        elif event == LogEvent.GROUP_ERROR:
            self._group_logs[record.thread] = values["aux_logs"]
            self._view.group_failed([job["jobid"] for job in values["job_error_info"]])
        elif event == LogEvent.JOB_FINISHED:
            self._view.finished(values["job_id"])

    def _job_failed(self, record: logging.LogRecord) -> None:
        """A job failed. What Snakemake says about its process was the last record of the same thread."""
        held, values = self._held.pop(record.thread, None), vars(record)
        # The end of "CalledProcessError in file F, line N: Command 'C' returned non-zero exit status 1."
        end = held.getMessage().rpartition("' ")[2] if held else ""
        if self._view:
            log_files = [*values["log"], *(self._group_logs.get(record.thread, ()) if values["indent"] else ())]
            self._view.failed(values["jobid"], f"{values['rule_msg'] or ''} {end}".strip(), log_files)

    def _release(self, thread: int | None) -> None:
        """Show an error that was held back: it is not about a job that failed."""
        if record := self._held.pop(thread, None):
            self._text(record)

    def _text(self, record: logging.LogRecord) -> None:
        text, view, values = record.getMessage(), self._view, vars(record)
        if view is None:
            if record.levelno >= logging.WARNING or text.startswith(NOTHING):
                self._snakemakes.handle(record)
        elif "study" in values:  # of `cisterna.runtime.snakefile.announce`
            view.belongs_to(*(values[key] for key in ("study", "configs", "log_files")))
        elif "advice" in values:  # of `onerror`; the view has its own
            pass
        elif text.startswith(STOPPING):
            view.stopping()
        elif text.startswith(AGAIN):
            view.restarted(text.removeprefix(AGAIN).rstrip("."))
        elif record.levelno >= logging.WARNING and not (text.startswith(FAILED) and view.knows_why):
            view.warn(text, "red" if record.levelno >= logging.ERROR else "yellow")
