"""Pages run from Python, and what their runs leave. `rlhf_jax.load_page` and `rlhf_jax.open_run` lead here.

A page is checked as the front door checks a command, and what a user can mend is raised as a UserError: nothing here
ends the process, and a run that fails leaves no lock behind.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.data.files.tables import read_table
from rlhf_jax.errors import UserError, problem_of_machine, read_object
from rlhf_jax.evaluation.doctor.examine import examine_run
from rlhf_jax.evaluation.doctor.findings import FINDINGS, Finding, from_dict
from rlhf_jax.evaluation.doctor.metric_rows import read_metric_rows
from rlhf_jax.programs import check_page, is_method, load_program, names
from rlhf_jax.ranges import value_at
from rlhf_jax.settings import load_page
from rlhf_jax.settings.overrides import check_names, is_own, set_field
from rlhf_jax.settings.page_fields import leaves
from rlhf_jax.settings.pages import PAGES
from rlhf_jax.training.checkpoints.object_stores import at, is_remote, write_text

# What a model was trained with it is sampled with: these fields of its page are also those of configs/generate.py.
_CARRIED = (
    *(f"data.{name}" for name in ("template", "thoughts", "generation_prompt", "chat_template", "date")),
    *(f"mesh.{name}" for name in ("data", "fsdp", "tensor")),
    "model.dtype",
    "distributed",
)
_ANY_LENGTH = 1 << 20  # tokens of a prompt: no prompt that was handed over is left out for its length


@dataclass(frozen=True)
class Page:
    """Settings that have been checked, and where they will be run.

    Attributes:
      config: the settings.
      workdir: the run's folder.
      files: the text of the files of rows that were handed over, by their paths below the workdir.
    """

    config: ConfigDict = field(repr=False)
    workdir: str
    files: Mapping[str, str] = field(repr=False)

    @classmethod
    def load(cls, spec: str, workdir: str | os.PathLike[str], settings: Mapping[str, Any]) -> Page:
        """See `rlhf_jax.load_page`."""
        workdir, files = os.fspath(workdir), {}
        if not workdir.strip():
            raise UserError("workdir: missing; use for example workdir='runs/dpo'")
        try:
            config = load_page(spec)
        except UserError as error:
            raise UserError(str(error).replace("--config: ", "page: ", 1)) from error
        check_names(config, spec, settings)
        for name, value in settings.items():
            set_field(config, name, _as_setting(name, value, workdir, files))
        check_page(config, set(settings), own=is_own(spec))
        return cls(config, workdir, files)

    def train(self) -> Run:
        """Runs a method to its end; the same workdir again continues it."""
        if not is_method(self.config.job):
            methods = ", ".join(name for name in names() if is_method(name))
            raise UserError(f"job: {self.config.job} trains nothing, so call run(); methods are {methods}")
        return self.run()

    def run(self) -> Run:
        """Runs whatever the page names, a method or another job, to its end."""
        _write(self.files)
        _forget_notices()
        try:
            # A copy: a run writes into its settings what it decides itself, such as the date of its start.
            load_program(self.config).run(copy.deepcopy(self.config), self.workdir)
        except Exception as error:
            problem = problem_of_machine(error)
            if problem is None:
                raise
            raise UserError(problem) from error
        return Run(self.workdir)


@dataclass(frozen=True)
class Run:
    """What a run left in its folder. It holds no model: whatever is asked is read from there."""

    workdir: str

    @classmethod
    def open(cls, workdir: str | os.PathLike[str]) -> Run:
        """See `rlhf_jax.open_run`."""
        run = cls(os.fspath(workdir))
        if not (at(run.workdir) / "config.json").exists():
            raise UserError(f"workdir: {run.workdir}: no run was started there; give the folder of one")
        return run

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one a logged step, evaluations among them as eval/NAME; None is not finite."""
        path = at(self.workdir) / "metrics.jsonl"
        if not path.exists():
            raise UserError(
                f"{path}: no such file; only methods write metrics, other jobs tables: table(NAME)"
            )
        rows, broken, _ = read_metric_rows(path)
        if broken:
            raise UserError(f"{path}: line {broken[0]}: no JSON object; mend or delete that line")
        return rows

    @property
    def summary(self) -> dict[str, Any]:
        """What an evaluation or a measurement found: its summary.json."""
        return read_object(at(self.workdir) / "summary.json", "only evaluate and measure write one")

    def findings(self) -> list[Finding]:
        """What the doctor finds, the worst first: about a method's run so far, or what an evaluation found.

        Each has name, severity, evidence, curves (metrics to look at), cause, setting and subject.
        """
        if (at(self.workdir) / "metrics.jsonl").exists():
            return examine_run(self.metrics, read_object(at(self.workdir) / "config.json", "a run has one"))
        found = read_object(at(self.workdir) / FINDINGS, "only methods and evaluate have findings")
        return [from_dict(row) for row in found["findings"]]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table that the run wrote, such as labels.parquet, outputs.parquet or samples/000010.jsonl."""
        return read_table(Path(self.workdir) / name)

    def sample(
        self, prompts: Sequence[str | Mapping[str, Any]], **settings: Any
    ) -> list[str] | list[list[str]]:
        """What the trained model answers, in the order of the prompts; nothing is written.

        prompts: instructions as texts, or records as dicts (instruction and input, prompt, or messages).
        settings: those of configs/generate.py, as for `rlhf_jax.load_page`: temperature (by default 0, greedy),
            max_new_tokens, samples (above 1 each prompt has a list of answers), seed, ...
        """
        if isinstance(prompts, str) or not all(isinstance(x, str | Mapping) for x in prompts):
            raise UserError("prompts: use a list of texts or dicts, as in sample(['Name three colours.'])")
        rows = [{"instruction": x} if isinstance(x, str) else dict(x) for x in prompts]
        settings = {"model.path": str(self._export()), **self._sampled_with(), **settings}
        page = Page.load(str(PAGES / "generate.py"), self.workdir, settings)
        generate = importlib.import_module("rlhf_jax.jobs.generate")  # of the room above this module
        found = generate.sample_prompts(page.config, self.workdir, rows)
        return found if page.config.samples > 1 else [texts[0] for texts in found]

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Copies the trained model, a Hugging Face folder, to a new place; returns that."""
        if Path(path).exists():
            raise UserError(f"path: {path} is there already; name a new folder")
        try:
            return Path(shutil.copytree(self._export(), path))
        except OSError as error:
            raise UserError(f"path: {path} cannot be written ({error}); name another folder") from error

    def _export(self) -> Path:
        folder = Path(self.workdir) / "export"
        if is_remote(self.workdir):
            raise UserError(f"workdir: {self.workdir}: only models on a disk are read; copy export/ there")
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no model there; a method writes one at its end, other jobs none")
        return folder

    def _sampled_with(self) -> dict[str, Any]:
        """The settings of configs/generate.py that follow from those of the run."""
        config = ConfigDict(read_object(Path(self.workdir) / "config.json"))
        known = {name: value_at(config, name) for name in leaves(config)}
        found = {name: known[name] for name in _CARRIED if name in known}
        date = Path(self.workdir) / "date.txt"
        if date.exists():
            found["data.date"] = date.read_text().strip()
        longest = known.get("rollout.max_new_tokens", known.get("data.max_length"))
        if longest is not None:
            found["max_new_tokens"] = longest
        return found | {"temperature": 0.0, "data.prompts": "", "data.max_prompt_length": _ANY_LENGTH}


def _as_setting(name: str, value: Any, workdir: str, files: dict[str, str]) -> Any:
    """A value as a page holds it: a path as text, rows as the path of the file that they are going to be written to."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        path, text = _file_of(name, value, workdir)
        files[path] = text
        return path
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or set(key) & set(",=/"):
                raise UserError(f"{name}: {key!r} is no name of a table; use letters, digits and _")
        return ",".join(
            f"{key}={_as_setting(f'{name}.{key}', x, workdir, files)}" for key, x in value.items()
        )
    return value


def _file_of(name: str, rows: Sequence[Mapping], workdir: str) -> tuple[str, str]:
    """(path, text) of rows as a JSONL file. The path holds a hash of the text.

    So the same rows are the same settings, with which a run goes on, and others are other settings, which it refuses.
    """
    if is_remote(workdir):
        raise UserError(f"{name}: rows cannot be kept in {workdir}; give a file, or a workdir on a disk")
    lines = []
    for number, row in enumerate(rows):
        try:
            lines.append(json.dumps(row, default=_as_json) + "\n")
        except (TypeError, ValueError) as error:
            wanted = "rows hold texts, numbers, lists and dicts of them"
            raise UserError(f"{name}: row {number} cannot be written as JSON ({error}); {wanted}") from error
    text = "".join(lines)
    return f"{workdir}/inputs/{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl", text


def _as_json(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, dates as text, as tables hold them; TypeError for anything else."""
    for name in ("tolist", "isoformat"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"a {type(value).__name__}")


def _write(files: Mapping[str, str]) -> None:
    for path, text in files.items():
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if not Path(path).exists():  # A run that goes on finds them, as old as they are.
                write_text(path, text)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"workdir: {path} cannot be written ({reason}); use another workdir") from error


def _forget_notices() -> None:
    """What a run says once it says in every run; there is nothing to forget while no run has begun."""
    startup = sys.modules.get("rlhf_jax.parallel.startup")
    if startup is not None:
        startup.forget_notices()
