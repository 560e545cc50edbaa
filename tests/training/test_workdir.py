import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints import workdir


def test_prepare_makes_the_folder_and_says_what_runs_in_it(tmp_path):
    folder = workdir.prepare_workdir(tmp_path / "runs" / "a", {"lr": 0.1, "sizes": (1, 2)})
    assert json.loads((folder / "config.json").read_text()) == {"lr": 0.1, "sizes": [1, 2]}
    workdir.prepare_workdir(str(folder), {"lr": 0.2})
    assert json.loads((folder / "config.json").read_text()) == {"lr": 0.2}
    workdir.lock.release(folder)
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"workdir: .*file/run cannot be written \(Not a directory\); use another --workdir"
    ):
        workdir.prepare_workdir(tmp_path / "file" / "run", {})
    with pytest.raises(UserError, match="cannot be written"):
        workdir.prepare_workdir("/proc/nowhere", {})


def test_processes_that_see_different_folders_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.startup, "process_count", lambda: 2)
    with pytest.raises(
        UserError, match=r"workdir: .* is not one folder for all 2 processes; .*shared file system"
    ):
        workdir.prepare_workdir(tmp_path, {})
    (tmp_path / ".process_1").touch()  # the other process's
    workdir.prepare_workdir(tmp_path, {})
    monkeypatch.setattr(workdir.startup, "is_main", lambda: False)
    with pytest.raises(UserError, match="not one folder"):
        workdir.prepare_workdir(tmp_path / "elsewhere", {})


def test_finished_only_with_the_same_fingerprint(tmp_path):
    assert not workdir.is_finished(tmp_path / "absent", "f")
    workdir.finish(tmp_path, {"lr": 0.1, "sizes": (1, 2)})
    assert workdir.is_finished(tmp_path, {"lr": 0.1, "sizes": (1, 2)})
    assert not workdir.is_finished(tmp_path, {"lr": 0.2, "sizes": (1, 2)})
    first = workdir.finished_run(tmp_path)
    workdir.finish(tmp_path, {"lr": 0.1, "sizes": (1, 2)})
    assert workdir.finished_run(tmp_path) != first  # Two runs with the same settings are two.
    text = (tmp_path / "finished.json").read_text()
    (tmp_path / "finished.json").write_text(text[: len(text) // 2])
    assert not workdir.is_finished(tmp_path, {"lr": 0.1, "sizes": (1, 2)})
    workdir.unfinish(tmp_path)
    workdir.unfinish(tmp_path / "absent")
    assert not (tmp_path / "finished.json").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    workdir.write_json(tmp_path / "a.json", {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workdir.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workdir.write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_samples_of_a_step_are_one_file(tmp_path):
    for _ in range(2):
        workdir.write_samples(tmp_path, 12, [{"prompt": "naïve?", "score": 0.5}, {"prompt": "b", "score": 1}])
    (file,) = (tmp_path / "samples").iterdir()
    assert file.name == "000012.jsonl"
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == ["naïve?", "b"]


def test_flatten():
    assert workdir.flatten({"a": {"b": {"c": 1}, "d": (1, 2)}, "e": None}) == {
        "a.b.c": 1,
        "a.d": [1, 2],
        "e": None,
    }


def test_digest_sees_names_and_contents(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"1234")
    first = workdir.digest(tmp_path / "d")
    assert workdir.digest(tmp_path / "d") == first
    (tmp_path / "d/a").write_bytes(b"1235")
    second = workdir.digest(tmp_path / "d")
    (tmp_path / "d/a").rename(tmp_path / "d/b")
    assert len({first, second, workdir.digest(tmp_path / "d"), workdir.digest(tmp_path / "d/b")}) == 4
    with pytest.raises(UserError, match="absent: not found"):
        workdir.digest(tmp_path / "absent")


def test_digest_sees_one_byte_in_the_middle_of_a_large_folder(tmp_path, monkeypatch, capsys):
    """Two models of one shape may differ in a few layers only."""
    monkeypatch.setattr(workdir, "_LARGE", 8 << 20)
    content = bytearray(9 << 20)
    (tmp_path / "big").write_bytes(content)
    first = workdir.digest(tmp_path)
    content[5 << 20] = 1
    (tmp_path / "big").write_bytes(content)
    assert workdir.digest(tmp_path) != first
    assert capsys.readouterr().out.count(f"hashing {tmp_path}, MiB 9/9") == 2
