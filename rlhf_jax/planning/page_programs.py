"""The programs of a page's run on a slice: its method, run on stand-ins up to the first of them, and then traced."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.mesh import AUTO, compiling_for, make_mesh
from rlhf_jax.planning import stand_ins
from rlhf_jax.planning.slices import Slice, devices_of
from rlhf_jax.programs import is_method, load_program
from rlhf_jax.ranges import value_at
from rlhf_jax.training.loop.program_costs import available
from rlhf_jax.training.run import memory_check
from rlhf_jax.training.run.memory_check import Phase, Plan, PlanOf


class PagePlan(NamedTuple):
    """A page on a slice, ready to be compiled.

    Attributes:
      plan_of: (page, mesh) -> its programs, as the method's own run has it.
      page: with stand-ins for what it reads.
      mesh: of the slice's devices, and current.
      notices: lines that a user should read.
    """

    plan_of: PlanOf
    page: ConfigDict
    mesh: Mesh
    notices: tuple[str, ...] = ()

    def on_meshes(self) -> Iterator[PagePlan]:
        """The page on its mesh; with `mesh.fsdp=auto` on each that its run would try, which is then the current one.

        As there, those on which not even what is always there has room are left out, but for the last.
        """
        if self.page.mesh.fsdp != AUTO:
            yield self
            return
        tried = memory_check.meshes_to_try(self.page)
        for sizes in tried:
            mesh = make_mesh(**sizes)
            if sizes is tried[-1] or memory_check.always_there(self.plan_of(self.page, mesh)) <= available():
                said = f"mesh.fsdp: auto, which takes {sizes['fsdp']} here, with mesh.data {sizes['data']}"
                yield self._replace(mesh=mesh, notices=(*self.notices, said))


@contextlib.contextmanager
def page_on(page: ConfigDict, found: Slice, asked: Mapping[str, str]) -> Iterator[PagePlan]:
    """A context with the programs of a page on a slice. Raises UserError as the run itself would."""
    devices = devices_of(found)
    page, notices = _with_mesh(page, len(devices))
    if page.get("win_rate", {}).get("judges", ""):
        page.win_rate.judges = ""
        notices = (*notices, "win_rate.judges is left out: what its evaluations sample is not planned")
    if str(page.data.get("packing", "")) == "auto":
        notices = (
            *notices,
            "data.packing=auto: planned for rows of max_length, of which none share an array's row",
        )
    before = jax.sharding.get_mesh()
    # What programs are compiled for cannot be kept for a run that has other devices.
    cache = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with tempfile.TemporaryDirectory() as folder, compiling_for(devices):
            yield _stopped(page, asked, Path(folder))._replace(notices=notices)
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)
        if not before.empty:
            jax.set_mesh(before)


def programs_of(plan: Plan) -> list[Phase]:
    """All programs of an iteration: the train step, what runs beside it, and the evaluation of held-out rows."""
    step = Phase(memory_check.STEP, lambda: memory_check.traced_step(plan), plan.beside)
    return [step, *plan.others, *filter(None, [plan.evaluation])]


def check_trains(page: ConfigDict) -> None:
    """Raises UserError for the page of a job, which has no train step."""
    if not is_method(page.job):
        raise UserError(
            f"--plan: {page.job} trains nothing; plans are of methods, the files of rlhf_jax/methods"
        )


def scaled(page: ConfigDict, times: Fraction | float) -> ConfigDict:
    """The page with its rows multiplied, so that each chip of a larger slice has as many. UserError where not whole."""
    # A quotient such as 56 / 24 is no float, and rows that divide would come out beside a whole number.
    page, times = ConfigDict(page.to_dict()), Fraction(times)
    given = page.to_dict()
    fields = ("rollout.batch_size", "minibatch_size") if "rollout" in given else ("batch_size",)
    for field in fields:
        rows = value_at(given, field) * times
        if rows != int(rows) or rows < 1:
            raise UserError(
                f"--scale: {field} of {int(rows / times)} rows cannot be multiplied with {times}; use chip counts that "
                "are multiples of the first, or another number of rows"
            )
        page.update_from_flattened_dict({field: int(rows)})
    return page


def _with_mesh(page: ConfigDict, count: int) -> tuple[ConfigDict, tuple[str, ...]]:
    """The page with a mesh of so many devices: its own where that is one, else the rest goes to fsdp."""
    page = ConfigDict(page.to_dict())
    sizes = page.mesh.to_dict()
    if sizes["fsdp"] == AUTO:
        return page, ()
    product = 1
    for size in sizes.values():
        product *= max(size, 1)
    if product == count or (-1 in sizes.values() and count % product == 0):
        return page, ()
    if count % sizes["tensor"]:
        return page, ()  # make_mesh says what is wrong with it
    page.mesh.data, page.mesh.fsdp = 1, count // sizes["tensor"]
    said = " x ".join(str(size) for size in sizes.values())
    return page, (
        f"mesh: the page's {said} is not of {count} devices; planned with --config.mesh.data=1 "
        f"--config.mesh.fsdp={page.mesh.fsdp} --config.mesh.tensor={page.mesh.tensor}, which its run needs, too",
    )


def _stopped(page: ConfigDict, asked: Mapping[str, str], folder: Path) -> PagePlan:
    """Runs the page's method on stand-ins until it would compile."""
    module, first = load_program(page), None
    for kind in stand_ins.KINDS:
        own, said = folder / kind, io.StringIO()
        own.mkdir()
        stood = stand_ins.stood_in(page, module.NEEDS, asked, own, kind)
        try:
            # What a run says of its rows would be of stand-ins.
            with contextlib.redirect_stdout(said), memory_check.stopped_at_plan():
                module.run(stood, str(own / "workdir"))
        except memory_check.StoppedAtPlanError as stopped:
            return PagePlan(stopped.plan_of, stopped.config, stopped.mesh)
        # Records of another kind than the method reads; the error that counts is that of the first.
        except UserError as error:
            first = first or error
    raise first
