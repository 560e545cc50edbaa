"""Measures the way from a file of instructions to token rows: the first time, again, and `datasets.map` beside it.

    python benchmarks/tokens.py [--rows 200000] [--only ours,datasets]

Rows are as long as Alpaca's (56 words), in ChatML, tokenised by a byte-level tokenizer of 16,000 tokens. `ours` goes
from the file to `Split`, rows held out, masks and counts included; `datasets` loads the same file, renders the same
template and tokenises in batches, in as many processes as there are cores; it makes no masks. Each repetition is a
process of its own; memory is the most that it and all processes below it had at once, ten looks a second, over
that after the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_files(folder: Path, count: int) -> None:
    """Writes rows.jsonl and a tokenizer: words of one to three syllables, drawn as rarely as a language's."""
    import numpy as np
    from transformers import AutoTokenizer

    from rlhf_jax.data.tokens.tokenizer_files import train_tokenizer

    draw = np.random.default_rng(0)
    parts = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    words = np.array(["".join(draw.choice(parts, draw.integers(1, 4))) for _ in range(30_000)], object)
    often = 1 / np.arange(1, len(words) + 1) ** 0.9
    often /= often.sum()
    with (folder / "rows.jsonl").open("w") as file:
        for start in range(0, count, 1000):
            for asked, said in draw.integers((5, 8), (19, 81), (min(1000, count - start), 2)):
                drawn = words[draw.choice(len(words), asked + said, p=often)]
                texts = (
                    " ".join(drawn[:asked]),
                    ". ".join(" ".join(drawn[i : i + 9]) for i in range(asked, len(drawn), 9)),
                )
                row = {"instruction": f"{texts[0].capitalize()}?", "input": "", "output": f"{texts[1]}."}
                file.write(json.dumps(row) + "\n")
    with (folder / "rows.jsonl").open() as file:
        train_tokenizer((next(file) for _ in range(min(count, 5000))), folder / "tokenizer", 16_000)
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    tokenizer.save_pretrained(str(folder / "tokenizer"))


def ours(folder: Path, _: int) -> dict:
    """Reads, holds out and encodes; from the second call on the rows are there."""
    from ml_collections import ConfigDict

    from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
    from rlhf_jax.training.rows import kept_tokens
    from rlhf_jax.training.run import encoded_rows

    assert encoded_rows.keepers == [kept_tokens.rows_from_disk]
    tokenizer = load_tokenizer(folder / "tokenizer")
    data = {"train": str(folder / "rows.jsonl"), "eval": "", "eval_rows": 500, "train_rows": 0}
    data |= {
        "template": "chat",
        "max_length": 2048,
        "not_ended": "keep",
        "too_long": "cut_response",
        "date": "",
    }
    data |= {"thoughts": "keep", "generation_prompt": "template", "chat_template": ""}
    began = Meter()
    split = encoded_rows.instructions(
        ConfigDict(data | {"token_cache": str(folder / "kept")}), tokenizer, 0, ""
    )
    return began.read() | {"rows": len(split.train) + len(split.eval), "tokens": len(split.train.tokens)}


def datasets(folder: Path, cores: int) -> dict:
    """The same with `datasets`: load, render and tokenise."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))

    def encode(batch: dict) -> dict:
        chats = [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            for asked, said in zip(batch["instruction"], batch["output"], strict=True)
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    began = Meter()
    rows = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
    found = rows.map(encode, batched=True, num_proc=cores, remove_columns=rows.column_names)
    return began.read() | {"rows": len(found), "tokens": 0}


class Meter:
    """Seconds and memory from here on."""

    def __init__(self) -> None:
        self._size = self._most = self._now()
        self._over, self._watch = threading.Event(), threading.Thread(target=self._look)
        self._watch.start()
        self._began, self._used = time.monotonic(), self._cpu()

    def read(self) -> dict:
        """Seconds by the clock and of all cores, and the MiB that came to those before."""
        seconds, used = time.monotonic() - self._began, self._cpu() - self._used
        self._over.set()
        self._watch.join()
        return {"s": seconds, "cpu_s": used, "mib": self._most - self._size}

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self._most = max(self._most, self._now())

    @staticmethod
    def _cpu() -> float:
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(use.ru_utime + use.ru_stime for use in uses)

    @staticmethod
    def _now() -> float:
        """MiB of this process and all below it, what they share counted once."""
        found, below = 0, [os.getpid()]
        while below:
            process = Path(f"/proc/{below.pop()}")
            # One may end meanwhile.
            with contextlib.suppress(OSError):
                rolled = (process / "smaps_rollup").read_text()
                found += int(re.search(r"Pss:\s+(\d+)", rolled)[1])
                for children in process.glob("task/*/children"):
                    below += map(int, children.read_text().split())
        return found / 1024


CONTESTANTS = {"ours": ours, "datasets": datasets}


def main() -> None:
    """Prints a table: the first time and again, of each contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--only", default=",".join(CONTESTANTS))
    parser.add_argument("--one", nargs=2, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if given.one:
        name, folder = given.one
        print(json.dumps(CONTESTANTS[name](Path(folder), cores)))
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what it leaves in memory is no part of what is measured.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_files, args=(Path(folder), given.rows)
        )
        maker.start()
        maker.join()
        print(
            f"{given.rows:,} rows, {cores} cores, {(Path(folder) / 'rows.jsonl').stat().st_size / 2**20:.0f} MiB"
        )
        print("| | seconds | CPU seconds | MiB over the imports |\n|---|---|---|---|")
        for name in given.only.split(","):
            for when in ("first", "again"):
                command = [sys.executable, __file__, "--one", name, folder]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(out.splitlines()[-1])
                assert found["rows"] == given.rows, found
                print(
                    f"| {name}, {when} | {found['s']:.1f} | {found['cpu_s']:.1f} | {found['mib']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
