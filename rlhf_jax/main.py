"""The front door: flags -> config -> one job.

    python -m rlhf_jax.main --config=configs/ppo.py --workdir=runs/ppo --config.kl_coef=0.02

Kept short on purpose: what a job does lives in `rlhf_jax/jobs`, and can be called without any flags.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from rlhf_jax import idle, quiet, ranges
from rlhf_jax.allocator import restart_with_huge_pages
from rlhf_jax.errors import UserError
from rlhf_jax.machine import problem_of_machine
from rlhf_jax.settings import changed, check_fields, check_overrides, explain, is_own

JOBS = (
    "inspect_data",
    "sft",
    "reward_model",
    "dpo",
    "ppo",
    "generate",
    "score",
    "annotate",
    "evaluate",
    "measure",
    "weight_diff",
    "farm",
)

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The page of settings: configs/NAME.py or configs/NAME.py:VARIANT."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for all that the job writes; the same folder resumes the job."
)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with errors that name the config field and the closest match."""
    try:
        if not {"--help", "--helpfull", "--helpshort"} & set(argv):
            check_overrides(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]}: not a flag; settings are written --config.NAME=VALUE")
        if not (WORKDIR.value or "").strip():
            raise UserError(f"--workdir: missing; use for example --workdir=runs/{CONFIG.value.job}")
        page, given = CONFIG.value, idle.given(argv)
        if page.job not in JOBS:
            raise UserError(f"job: {page.job!r}; use one of {', '.join(JOBS)}")
        if is_own(argv):
            check_fields(page)
            given |= changed(page)
        ranges.check(page.to_dict())
        for line in idle.notices(page, given):
            print(f"notice: {line}", flush=True)
        return rest
    except UserError as error:
        fail(str(error))
    except flags.Error as error:
        fail(explain(error, argv))


def fail(message: str) -> NoReturn:
    """Prints the one line a user needs and leaves with status 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    leave(2, message)


def leave(status: int, reason: str) -> NoReturn:
    """Ends this process, and soon the others of a run of several: none waits for one that has failed."""
    if "jax" not in sys.modules:  # Jobs that need no jax do not load it here either.
        sys.exit(status)
    from rlhf_jax.parallel import startup

    startup.leave(status, reason)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    try:
        importlib.import_module(f"rlhf_jax.jobs.{config.job}").run(config, WORKDIR.value)
    except UserError as error:
        fail(str(error))
    except (Exception, KeyboardInterrupt) as error:
        problem = problem_of_machine(error)
        if problem is not None:
            fail(problem)
        traceback.print_exc()
        leave(1, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    restart_with_huge_pages("rlhf_jax.main")
    quiet.leave_out_what_is_raised_too()
    try:
        app.run(main, flags_parser=parse_flags)
    except SystemExit as left:
        if left.code:
            quiet.end(left.code)
        raise
