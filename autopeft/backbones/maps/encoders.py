"""Site maps of encoders of text."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.backbones.maps.records import FamilyMap, Linear, Norm, Region, Sites, StackMap

__all__ = ["ENCODERS"]

_BERT_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region(
        "attention.self", "attention.output.dropout", "attention.output.LayerNorm", "post", attends=True
    ),
    "q": Linear("attention.self.query"),
    "k": Linear("attention.self.key"),
    "v": Linear("attention.self.value"),
    "o": Linear("attention.output.dense"),
    "attention_norm": Norm("attention.output.LayerNorm"),
    "ffn": Region("intermediate", "output.dropout", "output.LayerNorm", "post"),
    "up": Linear("intermediate.dense"),
    "down": Linear("output.dense"),
    "ffn_norm": Norm("output.LayerNorm"),
}
_BERT_STACK = StackMap("encoder", "", "encoder.layer", _BERT_SITES, "embeddings.word_embeddings")

_DISTILBERT_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attention", "attention.out_lin", "sa_layer_norm", "post", attends=True),
    "q": Linear("attention.q_lin"),
    "k": Linear("attention.k_lin"),
    "v": Linear("attention.v_lin"),
    "o": Linear("attention.out_lin"),
    "attention_norm": Norm("sa_layer_norm"),
    "ffn": Region("ffn", "ffn", "output_layer_norm", "post"),
    "up": Linear("ffn.lin1"),
    "down": Linear("ffn.lin2"),
    "ffn_norm": Norm("output_layer_norm"),
}

_MPNET_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attention.attn", "attention.dropout", "attention.LayerNorm", "post", attends=True),
    "q": Linear("attention.attn.q"),
    "k": Linear("attention.attn.k"),
    "v": Linear("attention.attn.v"),
    "o": Linear("attention.attn.o"),
    "attention_norm": Norm("attention.LayerNorm"),
    "ffn": Region("intermediate", "output.dropout", "output.LayerNorm", "post"),
    "up": Linear("intermediate.dense"),
    "down": Linear("output.dense"),
    "ffn_norm": Norm("output.LayerNorm"),
}

_MODERNBERT_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attn", "attn.out_drop", "attn_norm", "pre", attends=True),
    "q": Linear("attn.Wqkv", 0, 3),
    "k": Linear("attn.Wqkv", 1, 3),
    "v": Linear("attn.Wqkv", 2, 3),
    "qkv": Linear("attn.Wqkv"),
    "o": Linear("attn.Wo"),
    "attention_norm": Norm("attn_norm"),  # none in the first layer: the embeddings end in a norm
    "ffn": Region("mlp", "mlp", "mlp_norm", "pre"),
    "gate_proj": Linear("mlp.Wi", 0, 2),  # the half that goes through the activation
    "up": Linear("mlp.Wi", 1, 2),
    "down": Linear("mlp.Wo"),
    "ffn_norm": Norm("mlp_norm"),
}

_BERT = FamilyMap((_BERT_STACK,), pooler="pooler")
_ROBERTA = FamilyMap((_BERT_STACK,), position_offset="padding", pooler="pooler")

ENCODERS: Mapping[str, FamilyMap] = {
    "bert": _BERT,
    "electra": FamilyMap((_BERT_STACK,)),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": FamilyMap(
        (StackMap("encoder", "", "transformer.layer", _DISTILBERT_SITES, "embeddings.word_embeddings"),)
    ),
    "modernbert": FamilyMap(
        (
            StackMap(
                "encoder", "", "layers", _MODERNBERT_SITES, "embeddings.tok_embeddings", norm="final_norm"
            ),
        )
    ),
    "mpnet": FamilyMap(
        (StackMap("encoder", "", "encoder.layer", _MPNET_SITES, "embeddings.word_embeddings"),),
        position_offset="padding",
        pooler="pooler",
        padding_id=1,
    ),
}
