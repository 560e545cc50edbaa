"""Stand-ins for the programs of a study: what they write are the names of what was asked for."""

from pathlib import Path
from types import SimpleNamespace

import tiny_farm

from rlhf_jax.jobs.study import study_job, study_stages
from rlhf_jax.programs import program
from rlhf_jax.settings import load_page

FARM = ["data", "sft", "pairs", "val_pairs", "labels", "reward_model", "scores", "dpo", "ppo"]
FARM += ["outputs/sft", "outputs/dpo", "outputs/ppo", "evaluate"]
_SPLITS = ("sft.parquet", "preference.parquet", "unlabeled.parquet", "val.parquet", "eval.parquet")
MAKES = {
    "make_data": (*_SPLITS, "tokenizer/tokenizer.json"),
    "generate": ("outputs.parquet",),
    "annotate": ("labels.parquet",),
    "score": ("scores.parquet",),
    "evaluate": ("report.html", "leaderboard.csv", "leaderboard.txt"),
}


class KilledError(BaseException):
    """Ends a study in the middle of a stage."""


class Programs:
    """Stands in for `program`; notes what was run, and with which settings."""

    def __init__(self):
        self.ran, self.given, self.kill, self.makes, self.fail = [], {}, "", dict(MAKES), {}

    def __call__(self, name):
        def run(config, workdir):
            folder = Path(workdir)
            self.ran.append(folder.name if folder.parent.name != "outputs" else f"outputs/{folder.name}")
            self.given[self.ran[-1]] = config
            if self.ran[-1] in self.fail:
                raise self.fail[self.ran[-1]]
            for file in self.makes.get(name, ("export/config.json",)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(f"{file} of {folder.name}")
            if self.ran[-1] == self.kill:
                raise KilledError

        return SimpleNamespace(run=run, NEEDS=program(name).NEEDS)

    def run(self, page, workdir):
        """The stages that a study of this page runs, in order."""
        self.ran.clear()
        study_job.run(page, str(workdir))
        return list(self.ran)


def stand_in(monkeypatch):
    """Puts the stand-ins in the place of all programs, at the project's root."""
    found = Programs()
    monkeypatch.setattr(study_stages, "load_program", lambda page: found(page.job))
    monkeypatch.chdir(tiny_farm.ROOT)
    return found


def farm(**changes):
    """The farm's page. Its stages run in this process, where programs can be stood in for."""
    page = load_page("configs/farm.py")
    page.at_once = 1
    judges = {f"{name}.judges": "configs/judges/micro_clean.yaml" for name in ("labels", "evaluate")}
    page.update_from_flattened_dict(judges | changes)
    return page
