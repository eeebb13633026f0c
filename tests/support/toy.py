"""A hand-made backbone spec of any size, and methods built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from autopeft.method import Call, Context, get_method
from autopeft.spec import BackboneSpec, Site, StackSpec, TensorSpec

CALL = Call(Context())
GATED = Call(Context(), gated=True)


def toy_spec(
    *,
    layers: int = 2,
    hidden: int = 6,
    ffn: int = 10,
    kv: int = 4,
    bias: bool = True,
    post_norm: bool = True,
) -> BackboneSpec:
    """One encoder: q, k, v (keys and values `kv` wide), o, up, down and two norms a layer, a pooler."""
    sites = [Site("encoder", None, "embeddings", "embeddings", hidden, hidden)]
    tensors = [TensorSpec("embeddings.weight", (11, hidden), "embedding")]
    for i in range(layers):
        sites += _layer_sites(i, hidden, ffn, kv, bias, pre_norm=not post_norm)
        for site in sites:
            if site.layer == i and site.kind in {"linear", "norm"}:
                tensors += _tensors(site)
    tensors.append(TensorSpec("pooler.weight", (hidden, hidden), "weight", site="pooler"))
    if bias:
        tensors.append(TensorSpec("pooler.bias", (hidden,), "bias", site="pooler"))
    stack = StackSpec("encoder", layers, hidden, causal=False, head_dim=kv if kv % 2 else kv // 2)
    size = sum(t.size for t in tensors)
    return BackboneSpec("toy", (stack,), tuple(sites), tuple(tensors), size, pooler=True)


def _layer_sites(i: int, hidden: int, ffn: int, kv: int, bias: bool, *, pre_norm: bool) -> list[Site]:
    regions = [
        Site("encoder", i, name, "region", hidden, hidden, kv_features=width, pre_norm=pre_norm)
        for name, width in (("attention", kv), ("ffn", 0))
    ]
    shapes = {"q": (hidden, hidden), "k": (hidden, kv), "v": (hidden, kv), "o": (hidden, hidden)}
    shapes |= {"up": (hidden, ffn), "down": (ffn, hidden)}
    linears = [Site("encoder", i, name, "linear", *shape, bias=bias) for name, shape in shapes.items()]
    norms = [Site("encoder", i, n, "norm", hidden, hidden, bias=bias) for n in ("attention_norm", "ffn_norm")]
    return [*regions, *linears, *norms]


def _tensors(site: Site) -> list[TensorSpec]:
    norm = site.kind == "norm"
    path = f"layers.{site.layer}.{site.name}"
    shape = (site.out_features,) if norm else (site.out_features, site.in_features)
    place = (site.stack, site.layer, site.name)
    found = [TensorSpec(f"{path}.weight", shape, "norm_weight" if norm else "weight", *place)]
    if site.bias:
        found.append(TensorSpec(f"{path}.bias", shape[:1], "norm_bias" if norm else "bias", *place))
    return found


toy_specs = st.builds(
    toy_spec,
    layers=st.integers(1, 3),
    hidden=st.integers(1, 9),
    ffn=st.integers(1, 12),
    kv=st.integers(1, 9),
)


def sites_of(method: Any, spec: BackboneSpec) -> tuple[Site, ...]:
    """The sites that a method takes on a spec, as the graph chooses them."""
    names = method.config.sites or getattr(method, "default_sites", method.traits.default_sites)
    found = tuple(s for s in spec.sites if s.name in names)
    return tuple(method.among(found, spec)) if hasattr(method, "among") else found


def build(name: str, spec: BackboneSpec, **config: Any) -> tuple[Any, Sequence[Site]]:
    """A method's module on all its sites, and these."""
    method = configured(name, **config)
    sites = sites_of(method, spec)
    return method.build(sites, spec), sites


def configured(name: str, **config: Any) -> Any:
    """A method with its config."""
    cls = get_method(name)
    return cls(cls.Config(**config))


def size(module: Any) -> int:
    """Parameters that a module holds."""
    return sum(p.numel() for p in module.parameters())


def counted(name: str, spec: BackboneSpec, **config: Any) -> tuple[int, int, int, int]:
    """(deployed, trained) in closed form, then what the built module holds deployed and trained."""
    method = configured(name, **config)
    sites = sites_of(method, spec)
    count = method.parameter_count(sites, spec)
    module = method.build(sites, spec)
    trained = size(module)
    if hasattr(module, "deploy"):
        module.deploy()
    return count.deployed, count.trained, size(module), trained
