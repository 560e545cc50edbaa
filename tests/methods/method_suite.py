"""What must hold for every method. A method's test file subclasses `MethodSuite`, and the tests below run for it:

    class TestDpo(MethodSuite):
        job = "dpo"
        steps = {"epochs": 1.3}                     # 13 to 16 iterations on tiny_farm's files

        def case(self):                             # its loss on 16 rows, also for test_devices; see tiny_losses
            return Case(lambda R: dpo_loss_fn(CONFIG, R, 16, beta=0.1, label_smoothing=0.1), params, batch)

The loss may not depend on the order of rows, on padding, micro-batches or the mesh. A run that was stopped goes on to
the same bits, compiles nothing after its first cycle, and says before its first step what memory it takes.
"""

import contextlib
import io
import re
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import observed
import optax
import pytest
import tiny_farm
import tiny_losses
from jaxtyping import PyTree
from same_runs import assert_same_curve, assert_same_files, assert_same_state
from tiny_losses import Case, R, assert_same
from wide import WIDE, wide

from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import TrainStep, make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer

B1 = 0.9
# With a large eps the update is smooth in the gradient; Adam's usual first update is its sign.
ADAM = make_optimizer(learning_rate=0.1, total_steps=9, schedule="constant", b1=B1, eps=1e-2, max_grad_norm=0)
# Evaluation and checkpoint after every 4 iterations; a run is stopped after the second, or after the first.
RHYTHM = {"log_every": 1, "eval_every": 4, "save_every": 4, "optimizer.eps": 1e-2}
STOP, SAVED, FEW = 10, 8, 4


class Outcome(NamedTuple):
    """Of one update: every mean of the loss, the gradient, and the parameters after it."""

    metrics: dict[str, float]
    gradient: PyTree
    params: PyTree


def outcome(step: TrainStep, case: Case, batch: Any) -> Outcome:
    state, metrics = step(create(jax.tree.map(jnp.array, case.params), ADAM, seed=0), batch)
    gradient = jax.tree.map(lambda mu: mu / (1 - B1), optax.tree.get(state.opt_state, "mu"))
    return Outcome({k: float(x) for k, x in metrics.items() if k != "nonfinite"}, gradient, state.params)


class Observed(NamedTuple):
    """A run that was not stopped, what it read of its page, and what it printed before its first iteration."""

    folder: Path
    read: set[str]
    compiles: observed.Compiles
    said: str


class MethodSuite:
    """The tests of one method.

    Attributes:
      job: its name and that of its page, configs/JOB.py.
      small: what makes the page small, beside what `tiny_farm.settings` does.
      steps: what makes it run 13 to 16 iterations.
      shows_its_driver: whether its runs also show what only the driver does, which all methods of a kind share.
      files: patterns of files that must be the same whether a run was stopped or not, beside metrics and checkpoint.
    """

    job: str
    small: dict = {}
    steps: dict = {}
    shows_its_driver: bool = False
    files: tuple[str, ...] = ("export/*",)

    def case(self) -> Case | None:
        """Its loss with parameters and a batch, or None where the loss is that of another method."""
        return None

    def inputs(self, farm: Path, folder: Path) -> dict:
        """Changes of the page for files that the farm lacks, such as a pool; they are written to `folder`."""
        return {}

    # The loss: one update on 16 rows.

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls):
        """(the case, its step, the outcome of the plain batch)."""
        case = cls().case()
        if case is None:
            pytest.skip("its loss is that of another method")
        step = make_train_step(case.make(R), ADAM)
        return case, step, outcome(step, case, case.batch)

    def test_the_order_of_rows_does_not_matter(self, plain):
        case, step, wanted = plain
        assert_same(outcome(step, case, tiny_losses.reordered(case.batch)), wanted)
        for before, after in zip(*map(jax.tree.leaves, (case.params, wanted.params)), strict=True):
            assert np.abs(before - after).max() > 1e-4  # every parameter takes part

    def test_padding_on_the_right_does_not_matter(self, plain):
        case, _, wanted = plain
        extra = 9
        step = make_train_step(case.make(R + extra), ADAM)
        assert_same(outcome(step, case, tiny_losses.widened(case.batch, extra, case.keep)), wanted)

    def test_four_microbatches_are_as_good_as_one(self, plain):
        """They hold different numbers of tokens, and of rows that count."""
        case, _, wanted = plain
        step = make_train_step(case.make(R), ADAM, microbatches=4)
        assert_same(outcome(step, case, case.batch), wanted)

    # The run, on the farm.

    @pytest.fixture(scope="class")
    @classmethod
    def changes(cls, farm, tmp_path_factory):
        """Changes of the page that all runs share."""
        return RHYTHM | cls().inputs(farm, tmp_path_factory.mktemp("inputs")) | cls.small | cls.steps

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, farm, changes, tmp_path_factory):
        folder, printed, said = tmp_path_factory.mktemp("whole"), io.StringIO(), []

        def before(_: int) -> None:
            said.append(printed.getvalue())

        with contextlib.redirect_stdout(printed):
            config = tiny_farm.settings(cls.job, farm, **changes)
            read, compiles = observed.run(cls.job, config, folder, before=before)
        last = tiny_farm.rows(folder)[-1]["step"]
        assert STOP + 2 < last <= 16, f"steps: make it run 13 to 16 iterations, not {last}"
        return Observed(folder, read, compiles, said[0])

    @pytest.fixture(scope="class")
    @classmethod
    def continued(cls, farm, changes, tmp_path_factory):
        """The same run, stopped in the middle and started again: (folder, what the second start compiled)."""
        folder, config = tmp_path_factory.mktemp("continued"), tiny_farm.settings(cls.job, farm, **changes)
        observed.run(cls.job, config, folder, stop_before=STOP)
        _, compiles = observed.run(cls.job, config, folder)
        assert min(compiles.at) == SAVED, "it did not go on from the checkpoint"
        return folder, compiles

    def read_elsewhere(self, farm: Path, folder: Path) -> set[str]:
        """Fields that this run has no need of, and what reads them."""
        return set()

    def test_no_field_of_the_page_is_decoration(self, whole, farm, tmp_path):
        observed.assert_all_read(self.job, whole.read | self.read_elsewhere(farm, tmp_path))

    def test_memory_is_said_before_the_first_step(self, whole):
        assert re.search(r"memory per device: \d+\.\d\d GiB needed \(.*\), \d+\.\d\d GiB there", whole.said)

    def test_nothing_compiles_after_the_first_cycle(self, whole):
        counted = whole.compiles
        assert counted.at[0] > 0 and counted.at[1] == counted.at[3], "the second iteration compiled something"
        assert counted.at[4] == counted.end, "after an evaluation and a checkpoint something compiled again"
        assert {step.cache_size() for step in counted.steps} == {1}

    def test_nothing_compiles_after_a_restart(self, continued):
        _, counted = continued
        assert counted.at[9] == counted.at[11], "a restored state needs another program than a new one"
        assert counted.at[12] == counted.end > 0
        assert {step.cache_size() for step in counted.steps} == {1}

    def test_a_stopped_run_ends_with_the_same_bits(self, whole, continued):
        self.assert_same_run(continued[0], whole.folder)

    def test_microbatches_do_not_matter_to_a_run(self, farm, changes, whole, tmp_path):
        """Neither of updates nor of rollouts. Only the drivers read these; the losses are tried with them above."""
        if not (WIDE or self.shows_its_driver):
            pytest.skip("another method shows it of its driver; RLHF_JAX_WIDE=1 runs it")
        config = tiny_farm.settings(self.job, farm, **changes | {"microbatches": 2})
        if "rollout" in config:
            config.rollout.microbatches = 2
        observed.run(self.job, config, tmp_path, stop_before=FEW)
        found = tiny_farm.rows(tmp_path)
        assert found[-1]["step"] == FEW
        assert_same_curve(found, tiny_farm.rows(whole.folder)[: len(found)])

    @wide
    @pytest.mark.timeout(900)
    def test_a_killed_run_ends_with_the_same_bits(self, farm, changes, whole, tmp_path):
        """kill -9 when a checkpoint is there and the next steps are under way."""
        command = ["-m", "rlhf_jax.main", *tiny_farm.arguments(self.job, farm, tmp_path, **changes)]
        killed = tiny_farm.start(command)
        while not (tmp_path / "checkpoints/4").exists() and killed.poll() is None:
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL, f"it ended before it was killed: {killed.stdout.read()}"
        assert "continuing" in tiny_farm.finish(tiny_farm.start(command))
        self.assert_same_run(tmp_path, whole.folder)

    @wide
    @pytest.mark.timeout(900)
    def test_two_processes_are_as_good_as_one(self, farm, changes, whole, tmp_path):
        command = tiny_farm.arguments(self.job, farm, tmp_path, **changes | {"mesh.fsdp": 2})
        outs = map(tiny_farm.finish, tiny_farm.start_several(2, "-m", "rlhf_jax.main", *command))
        assert [bool(re.search("memory per device", out)) for out in outs] == [True, False]  # process 0 talks
        found, wanted = (
            [row for row in tiny_farm.rows(folder) if row["step"] <= FEW]
            for folder in (tmp_path, whole.folder)
        )
        assert_same_curve(found, wanted)

    def assert_same_run(self, found: Path, wanted: Path) -> None:
        assert_same_state(found, wanted)
        samples = ("samples/*",) if (wanted / "samples").exists() else ()
        for pattern in (*self.files, *samples):
            assert_same_files(found, wanted, pattern)
