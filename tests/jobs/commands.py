"""Reads a command line as `python -m rlhf_jax.main` does, in this process, and runs nothing."""

import sys
from unittest import mock

from absl import flags
from ml_collections import ConfigDict

from rlhf_jax import main


def parse_command(arguments: list[str]) -> ConfigDict:
    """The page of a command, its overrides made and checked. arguments: what stands behind `-m rlhf_jax.main`.

    Prints notices, and for a command that is refused prints the error and raises SystemExit.
    """
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    command = ["rlhf_jax", *arguments]
    with mock.patch.object(sys, "argv", command):  # which the library of config flags looks at, too
        main.parse_flags(command)
    return main.CONFIG.value
