"""A LoRA in a GGUF file gives the hybrid's logits in llama.cpp itself.

Skipped without `pip install llama-cpp-py-sync`, which has llama.cpp built and its C functions by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.gguf_models import as_gguf
from support.tiny import randomise, tiny_model

from autopeft import attach
from autopeft.export.gguf_format import write_gguf
from autopeft.export.lora_weights import lora_weights
from autopeft.recipe import Recipe

TOKENS = [5, 9, 17, 4, 30, 9, 12]
EXACT = [{"lora": {"rank": 3, "sites": ["q", "k", "up"]}}, {"ia3": {"sites": ["v", "down"]}}]


class LlamaCpp:
    """llama.cpp on one thread, with keys and values in fp32."""

    def __init__(self, bindings: Any) -> None:
        self.lib, self.ffi = bindings.get_lib(), bindings.get_ffi()
        self.lib.llama_backend_init()

    @contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[Any, Any]]:
        settings = self.lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        model = self.lib.llama_model_load_from_file(str(path).encode(), settings)
        assert model != self.ffi.NULL, f"llama.cpp does not read {path}"
        own = self.lib.llama_context_default_params()
        own.n_ctx = own.n_batch = own.n_ubatch = 64
        own.n_threads = own.n_threads_batch = 1
        own.type_k = own.type_v = self.lib.GGML_TYPE_F32
        own.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self.lib.llama_init_from_model(model, own)
        assert context != self.ffi.NULL
        try:
            yield model, context
        finally:
            self.lib.llama_free(context)
            self.lib.llama_model_free(model)

    def logits(self, path: Path, tokens: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
        """Of each token (tokens, vocabulary)."""
        with self._opened(path) as (model, context):
            if adapter is not None:
                lora = self.lib.llama_adapter_lora_init(model, str(adapter).encode())
                assert lora != self.ffi.NULL, f"llama.cpp does not read {adapter}"
                several, scales = self.ffi.new("struct llama_adapter_lora *[]", [lora]), [1.0]
                assert not self.lib.llama_set_adapters_lora(
                    context, several, 1, self.ffi.new("float[]", scales)
                )
            batch = self.lib.llama_batch_init(len(tokens), 0, 1)
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            assert self.lib.llama_decode(context, batch) == 0
            size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(model))
            memory = self.ffi.buffer(self.lib.llama_get_logits(context), 4 * size * len(tokens))
            found = np.frombuffer(memory, dtype=np.float32).reshape(len(tokens), size).copy()
            self.lib.llama_batch_free(batch)
        return found


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    return LlamaCpp(pytest.importorskip("llama_cpp_py_sync._cffi_bindings"))


@pytest.mark.slow
def test_a_lora_is_the_hybrid_there(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    base = tmp_path / "base.gguf"
    as_gguf(model, base)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        plain = model(ids).logits[0].numpy()
    assert np.abs(llama_cpp.logits(base, TOKENS) - plain).max() < 1e-5
    with attach(model, Recipe.from_dict({"name": "r", "layers": [{"attach": EXACT}]}), seed=0) as hybrid:
        randomise(hybrid.root)
        with torch.no_grad():
            wanted = model(ids).logits[0].numpy()
        adapter = write_gguf(model, lora_weights(hybrid), tmp_path)
    assert np.abs(wanted - plain).max() > 0.1, "the hybrid changes nothing"
    assert np.abs(llama_cpp.logits(base, TOKENS, adapter) - wanted).max() < 1e-5
