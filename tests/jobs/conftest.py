"""What the tests of the jobs share."""

import sys

import pytest
import tiny_farm
from absl import flags

from rlhf_jax import main


@pytest.fixture
def front_door(monkeypatch, capsys):
    """Calls main as a command would: arguments -> (exit status, what was printed, the lines of stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhf_jax", *arguments])
        monkeypatch.chdir(tiny_farm.ROOT)
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # overrides of an earlier call
        capsys.readouterr()
        status = 0
        try:
            main.main(main.parse_flags(["rlhf_jax", *arguments]))
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, [line for line in printed.err.splitlines() if line.strip()]

    return call


@pytest.fixture
def refused(front_door):
    """Calls main with what it must refuse; returns the one line it says."""

    def call(*arguments):
        status, _, errors = front_door(*arguments)
        assert status == 2, errors
        assert len(errors) == 1 and errors[0].startswith("error: "), errors
        assert len(errors[0]) < 1000
        return errors[0].removeprefix("error: ")

    return call
