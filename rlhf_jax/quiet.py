"""Keeps libraries quiet about a failure that the run itself reports in one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any, NoReturn

_LOGGERS = ("absl", "asyncio")
# Said by writes of TensorStore that end after the one that failed.
_CLOSED = "Event loop is closed"


def leave_out_what_is_raised_too() -> None:
    """Leaves out what libraries log, warn or print of a failure that is raised, too.

    Orbax, for one, logs a failed save with several tracebacks before it raises the error that the job reports.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_news)
    # A disk that is full holds no compiled programs either: the next start compiles again.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    said = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != _CLOSED:
            said(found)

    sys.unraisablehook = hook


def end(status: int) -> NoReturn:
    """Ends the process at once, so that no thread that is still working can print behind the last line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_news(record: logging.LogRecord) -> bool:
    # A traceback through Orbax's files is that of a failed save; all else may be something new.
    if not record.exc_info or record.exc_info[2] is None:
        return True
    trace, files = record.exc_info[2], []
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return not any(f"{os.sep}orbax{os.sep}" in file for file in files)
