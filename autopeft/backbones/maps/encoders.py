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

_DEBERTA_SITES: Sites = {
    **{name: place for name, place in _BERT_SITES.items() if name not in ("q", "k", "v")},
    "attention": Region(
        "attention.self",
        "attention.output.dropout",
        "attention.output.LayerNorm",
        "post",
        attends=True,
        thirds=True,
    ),
    "qkv": Linear("attention.self.in_proj"),  # of each head in turn, so that no slice is all queries
}
_DEBERTA_V2_SITES: Sites = {
    **_BERT_SITES,
    "q": Linear("attention.self.query_proj", positions=False),
    "k": Linear("attention.self.key_proj", positions=False),
    "v": Linear("attention.self.value_proj"),
}


def _deberta(sites: Sites) -> FamilyMap:
    table = "embeddings.word_embeddings"
    stack = StackMap("encoder", "", "encoder.layer", sites, table, ones=True, blends="encoder.conv")
    return FamilyMap((stack,), past=("encoder.rel_embeddings.weight",))


# One layer runs as often as the config says. Its group could hold several.
_ALBERT_LAYER, _ALBERT_ATTENTION = "albert_layers.0", "albert_layers.0.attention"
_ALBERT_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region(
        _ALBERT_ATTENTION,
        f"{_ALBERT_ATTENTION}.output_dropout",
        f"{_ALBERT_ATTENTION}.LayerNorm",
        "post",
        attends=True,
    ),
    "q": Linear(f"{_ALBERT_ATTENTION}.query"),
    "k": Linear(f"{_ALBERT_ATTENTION}.key"),
    "v": Linear(f"{_ALBERT_ATTENTION}.value"),
    "o": Linear(f"{_ALBERT_ATTENTION}.dense"),
    "attention_norm": Norm(f"{_ALBERT_ATTENTION}.LayerNorm"),
    "ffn": Region(
        f"{_ALBERT_LAYER}.ffn",
        f"{_ALBERT_LAYER}.ffn_output",
        f"{_ALBERT_LAYER}.full_layer_layer_norm",
        "post",
    ),
    "up": Linear(f"{_ALBERT_LAYER}.ffn"),
    "down": Linear(f"{_ALBERT_LAYER}.ffn_output"),
    "ffn_norm": Norm(f"{_ALBERT_LAYER}.full_layer_layer_norm"),
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

_NOMIC_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region(
        "self_attn", "post_attention_dropout", "post_attention_layernorm", "post", attends=True
    ),
    "q": Linear("self_attn.q_proj"),
    "k": Linear("self_attn.k_proj"),
    "v": Linear("self_attn.v_proj"),
    "o": Linear("self_attn.o_proj"),
    "attention_norm": Norm("post_attention_layernorm"),
    "ffn": Region("mlp", "post_mlp_dropout", "post_mlp_layernorm", "post"),
    "up": Linear("mlp.up_proj"),
    "gate_proj": Linear("mlp.gate_proj"),
    "down": Linear("mlp.down_proj"),
    "ffn_norm": Norm("post_mlp_layernorm"),
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
    "deberta": _deberta(_DEBERTA_SITES),
    "deberta-v2": _deberta(_DEBERTA_V2_SITES),
    "albert": FamilyMap(
        (
            StackMap(
                "encoder",
                "",
                "encoder.albert_layer_groups",
                _ALBERT_SITES,
                "embeddings.word_embeddings",
                repeats=True,
                single="albert_layers",
                leaves="encoder",  # the pooler is handed the first row alone
            ),
        ),
        pooler="pooler",
    ),
    "modernbert": FamilyMap(
        (
            StackMap(
                "encoder", "", "layers", _MODERNBERT_SITES, "embeddings.tok_embeddings", norm="final_norm"
            ),
        )
    ),
    "nomic_bert": FamilyMap(
        (StackMap("encoder", "", "layers", _NOMIC_SITES, "embeddings.word_embeddings"),), pooler="pooler"
    ),
    "mpnet": FamilyMap(
        (StackMap("encoder", "", "encoder.layer", _MPNET_SITES, "embeddings.word_embeddings"),),
        position_offset="padding",
        pooler="pooler",
        padding_id=1,
    ),
}
