"""Workdirs in an object store. The store is a stand-in below a folder that refuses what real ones cannot do.

Checkpoints there are TensorStore's own work: without a network only the address they are given is checked.
"""

import json
import os

import pytest
import toy_training as toy
from etils import epath
from etils.epath import backend, gpath

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints import lock, object_stores, workdir
from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop.metrics import make_writer


class Bucket(backend._OsPathBackend):
    """Objects are files of a folder: folders come and go with them, and nothing is appended or renamed."""

    def __init__(self, folder):
        self.folder = folder
        for name in (
            "exists",
            "isdir",
            "listdir",
            "glob",
            "remove",
            "rmtree",
            "mkdir",
            "makedirs",
            "walk",
            "stat",
        ):
            if hasattr(backend._OsPathBackend, name):
                setattr(self, name, self._moved(getattr(super(), name)))

    def here(self, path):
        return str(path).replace("gs://bucket", str(self.folder), 1)

    def _moved(self, function):
        return lambda path, *rest, **options: function(self.here(path), *rest, **options)

    def open(self, path, mode):
        assert "a" not in mode and "+" not in mode, "objects cannot be appended to"
        if "w" in mode:
            super().makedirs(self.here(path).rpartition("/")[0], exist_ok=True)
        return super().open(self.here(path), mode)

    def rename(self, path, dst):
        raise AssertionError("an object store renames by copying everything")

    replace = rename


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    folder = tmp_path / "bucket"
    folder.mkdir()
    stand_in = Bucket(folder)
    monkeypatch.setattr(gpath, "_PREFIX_TO_BACKEND", {**gpath._PREFIX_TO_BACKEND, "gs": stand_in})
    return folder


def test_the_small_files_of_a_workdir(bucket):
    run = "gs://bucket/runs/a"
    assert str(workdir.prepare_workdir(run, {"seed": 1})) == run
    assert json.loads((bucket / "runs/a/config.json").read_text()) == {"seed": 1}
    workdir.write_samples(run, 3, [{"output": "x"}])
    assert (bucket / "runs/a/samples/000003.jsonl").read_text() == '{"output": "x"}\n'
    assert not workdir.is_finished(run, {"a": 1})
    workdir.finish(run, {"a": 1})
    assert workdir.is_finished(run, {"a": 1}) and not workdir.is_finished(run, {"a": 2})
    lock.release(run)


def test_a_workdir_there_has_one_writer_too(bucket, monkeypatch):
    """Which is seen to live by its beats, and followed when it has fallen silent or is gone from this machine."""
    monkeypatch.setattr(lock, "_REMOTE_BEAT_S", 0.1)
    monkeypatch.setattr(lock, "_AGREE_S", 0.0)
    run, file = "gs://bucket/runs/e", bucket / "runs/e/lock.json"
    lock.hold(run)
    mine = json.loads(file.read_text())
    assert (mine["process"], mine["folder"]) == (os.getpid(), run)
    lock.release(run + "/")
    assert not file.exists()
    file.parent.mkdir(exist_ok=True)
    parent = {"process": os.getppid(), "started": lock._started(os.getppid()), "token": "theirs"}
    file.write_text(json.dumps(mine | parent))
    with pytest.raises(UserError, match=f"in use by process {os.getppid()} on "):
        lock.hold(run + "/")
    for dead in (mine | {"machine": "far"}, mine | {"started": "0"}):
        file.write_text(json.dumps(dead | {"token": "theirs"}))
        lock.hold(run)
        assert json.loads(file.read_text())["token"] != "theirs"
        lock.release(run)


def test_metrics_are_written_as_a_whole_and_go_on_after_a_step(bucket):
    path = bucket / "runs/b/metrics.jsonl"
    for start, steps, there in ((None, (1, 2, 3), 3), (2, (3, 4), 4)):
        writer = make_writer("gs://bucket/runs/b")
        writer.start(start)
        for step in steps:
            writer.write(step, {"loss": step / 2})
        writer.flush()
        assert len(path.read_text().splitlines()) == there
        writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="use a --workdir on a disk"):
        make_writer("gs://bucket/runs/b", tensorboard=True)


def test_an_export_is_copied_there_and_replaces_what_was(bucket, tmp_path):
    for names in (("config.json", "model.safetensors", "templates/a.jinja"), ("config.json",)):
        local = tmp_path / str(len(names)) / "export"
        for name in names:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_text(name)
        object_stores.publish(local, "gs://bucket/runs/c/export")
        there = bucket / "runs/c/export"
        found = sorted(str(file.relative_to(there)) for file in there.rglob("*") if file.is_file())
        assert found == sorted(names)
        assert all((there / name).read_text() == name for name in names)


def test_checkpoints_are_given_the_address_unchanged(monkeypatch):
    asked = []

    class Asked(Exception):  # noqa: N818
        pass

    def stand_in(directory, **_):
        asked.append(directory)
        raise Asked

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", stand_in)
    for name in ("gs://bucket/runs/d", "s3://bucket/runs/d"):
        with pytest.raises(Asked):
            Checkpoints(name, config={})
    assert [str(path) for path in asked] == [
        "gs://bucket/runs/d/checkpoints",
        "s3://bucket/runs/d/checkpoints",
    ]
    assert all(isinstance(path, epath.Path) for path in asked)


def test_addresses():
    assert (
        object_stores.workdir_name("gs://bucket/a")
        == object_stores.workdir_name("gs://bucket/a/")
        == "gs://bucket/a"
    )
    assert object_stores.workdir_name("runs/a").startswith("/")
    with pytest.raises(UserError, match=r"ftp:// is not known; use a folder, or one of gs://, s3://"):
        object_stores.is_remote("ftp://host/a")


def test_a_store_that_cannot_be_reached_says_what_to_install(monkeypatch):
    def missing(*_):
        raise ImportError("no module named s3fs")

    monkeypatch.setattr(type(epath.Path("s3://bucket")), "exists", missing)
    with pytest.raises(UserError, match="pip install s3fs"):
        workdir.prepare_workdir("s3://bucket/a", {})


def test_a_workdir_on_disk_is_as_it_was(tmp_path):
    toy.train(tmp_path / "run", steps=2)
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"loss"') == 2
