"""Llamas in files as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

__all__ = ["as_gguf"]


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k in llama.cpp's order: of each head feature 0, d/2, 1, d/2 + 1, …"""
    half = len(weight) // heads // 2
    order = [h * 2 * half + j * half + i for h in range(heads) for i in range(half) for j in range(2)]
    return weight[order]


def as_gguf(
    model: LlamaForCausalLM, path: Path, changes: Mapping[str, NDArray[np.float32]] | None = None
) -> None:
    """Write a Llama as llama.cpp has it, in fp32 and without a vocabulary, with ΔW of its own maps added."""
    left = dict(changes or {})
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        array, owner = value.float().numpy(), key.removesuffix(".weight")
        if owner.rpartition(".")[2] in heads:
            array = interleaved(array, heads[owner.rpartition(".")[2]])
        name = f"{names.get_name(owner)}.weight"
        writer.add_tensor(name, np.ascontiguousarray(array + left.pop(name, 0)).astype(np.float32))
    assert not left, "every change belongs to a tensor of the model"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
