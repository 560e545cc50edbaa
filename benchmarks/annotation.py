"""Measures the annotation layer beside the bare OpenAI SDK, on a server of this machine.

    python benchmarks/annotation.py                        # throughput: ours and the bare SDK in turns
    python benchmarks/annotation.py --rows 100000 --only ours     # memory with so many pairs, and a cached re-run

Each repetition is a process of its own. The server answers at once, so what is measured is the client's own work:
the SDK's ceiling. `bare` sends the same bodies with as many workers by `client.chat.completions.create`, keeps
nothing and writes nothing; `ours` is `annotate_pairs` from rows to labelled rows with the cache on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TEXT = "The quick brown fox jumps over the lazy dog while nobody is watching. " * 8


def rows(n: int) -> list[dict]:
    """Pairs of about half a kilobyte a side."""
    return [
        {"instruction": f"Say {i}.", "input": "", "output_1": f"{i} {TEXT}", "output_2": f"{TEXT} {i}"}
        for i in range(n)
    ]


PAYLOAD = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(PAYLOAD)


class Answering(asyncio.Protocol):
    """As little server as speaks HTTP/1.1: every request gets the same answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport, self._read = transport, b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._read) < end + 4 + length:
                return
            self._read = self._read[end + 4 + length :]
            self._transport.write(RESPONSE + PAYLOAD)


def serve(port: multiprocessing.Value) -> None:
    """Serves until it is stopped."""

    async def go() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=4096)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(go())


def judge(url: str) -> object:
    """One token, after the shipped choice template."""
    from rlhf_jax.annotation.judges.prompts import PromptTemplate, read_template
    from rlhf_jax.annotation.judges.specs import JudgeSpec, PoolSpec
    from rlhf_jax.annotation.parsing.parsers import ParserSpec

    source, name = read_template("pairwise_choice", Path(), "benchmark")
    spec = JudgeSpec("j", "openai", "m", PromptTemplate(source, name), ParserSpec("choice"), base_url=url + "/v1",
                     max_tokens=5)  # fmt: skip
    return PoolSpec("benchmark", (spec,), (1.0,))


def ours(url: str, n: int, concurrency: int, folder: Path) -> dict:
    """From rows to labelled rows, and once more from the cache."""
    from rlhf_jax.annotation import annotate_pairs, write_labels

    given, pool, cache = rows(n), judge(url), folder / "answers.sqlite"
    done = annotate_pairs(given, pool, cache_path=cache, max_concurrency=concurrency)
    assert done.summary["status"] == {"ok": n}, done.summary
    rate = done.summary["asked_per_s"]
    del done
    peak, started, cpu = peak_mib(), time.monotonic(), time.process_time()
    again = annotate_pairs(given, pool, cache_path=cache, max_concurrency=concurrency)
    write_labels(folder / "labels.parquet", again.rows, {})
    assert again.summary["cached"] == n
    again_s = {"cached_rerun_s": time.monotonic() - started, "cached_rerun_cpu_s": time.process_time() - cpu}
    return {"per_s": rate, "peak_mib": peak, **again_s, "cached_peak_mib": peak_mib()}


def bare(url: str, n: int, concurrency: int, folder: Path) -> dict:
    """The SDK alone."""
    import openai

    from rlhf_jax.annotation.judges.requests import Judge

    asker = Judge(judge(url).judges[0], {})
    bodies = iter([asker.body([(r["instruction"], r["output_1"], r["output_2"])]) for r in rows(n)])

    async def go() -> float:
        limits = {"max_connections": concurrency, "max_keepalive_connections": concurrency}
        http = openai.DefaultAsyncHttpxClient(
            limits=openai._base_client.httpx2.Limits(**limits), trust_env=False
        )
        client = openai.AsyncOpenAI(api_key="none", base_url=url + "/v1", max_retries=0, http_client=http)

        async def work() -> None:
            for body in bodies:
                answer = await client.chat.completions.create(**body)
                assert answer.choices[0].message.content == "a"

        started = time.monotonic()
        await asyncio.gather(*[work() for _ in range(concurrency)])
        return time.monotonic() - started

    return {"per_s": n / asyncio.run(go()), "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CONTESTANTS = {"bare": bare, "ours": ours}


def main() -> None:
    """Prints a line for every repetition and the ratio of the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, url = args.child
        with tempfile.TemporaryDirectory() as folder:
            said = CONTESTANTS[name](url, args.rows, args.concurrency, Path(folder))
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(said | {"cpu_s": cpu.ru_utime + cpu.ru_stime}))
        return
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    names = [args.only] if args.only else list(CONTESTANTS)
    best = dict.fromkeys(names, 0.0)
    for _ in range(1 if args.only else args.repetitions):
        for name in names:
            command = [
                sys.executable,
                __file__,
                "--rows",
                str(args.rows),
                "--concurrency",
                str(args.concurrency),
            ]
            command += ["--child", name, f"http://127.0.0.1:{port.value}"]
            done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            said = json.loads(done.stdout.splitlines()[-1])
            best[name] = max(best[name], said["per_s"])
            print(name, " ".join(f"{key} {value:.1f}" for key, value in said.items()), flush=True)
    server.terminate()
    if len(names) > 1:
        share = best["ours"] / best["bare"]
        print(f"best: ours {best['ours']:.0f}/s, bare SDK {best['bare']:.0f}/s, {share:.0%} of it")


if __name__ == "__main__":
    main()
