"""Models and data without a hub: the pinned table of packages, the cache, and backbones by name."""

from __future__ import annotations

from autopeft.assets.cache import (
    cache_dir,
    cache_folder,
    intact,
    make_room,
    publish,
    sha256_of,
    warn_once,
    writable_folder,
)
from autopeft.assets.heads import head_bank, head_names, reset_head
from autopeft.assets.hub import hub_answers
from autopeft.assets.images import ImageProcessor, image_processor_of, load_image_processor
from autopeft.assets.live import keep_model
from autopeft.assets.models import (
    ModelSource,
    check_weights,
    load_config,
    load_generation_config,
    load_model,
    load_tokenizer,
    model_name,
    resolve_model,
    source_of,
)
from autopeft.assets.precision import dtype_of
from autopeft.assets.quantized import (
    is_packed,
    keep_differentiable,
    quantization_in,
    quantization_of,
    unquantized,
)
from autopeft.assets.quantizing import QUANTIZED, check_quantize
from autopeft.assets.quiet import quiet_libraries
from autopeft.assets.safetensors_header import FLOATS, StoredTensor, read_header
from autopeft.assets.table import ASSETS, DEFAULT_MODEL, MODEL_ALIASES, Asset, Wheel, WheelSource
from autopeft.assets.weights import backbone_fingerprint, map_weights
from autopeft.assets.wheels import (
    Notify,
    extract_members,
    fetch,
    fetch_member,
)

__all__ = [
    "ASSETS",
    "DEFAULT_MODEL",
    "FLOATS",
    "MODEL_ALIASES",
    "QUANTIZED",
    "Asset",
    "ImageProcessor",
    "ModelSource",
    "Notify",
    "StoredTensor",
    "Wheel",
    "WheelSource",
    "backbone_fingerprint",
    "cache_dir",
    "cache_folder",
    "check_quantize",
    "check_weights",
    "dtype_of",
    "extract_members",
    "fetch",
    "fetch_member",
    "head_bank",
    "head_names",
    "hub_answers",
    "image_processor_of",
    "intact",
    "is_packed",
    "keep_differentiable",
    "keep_model",
    "load_config",
    "load_generation_config",
    "load_image_processor",
    "load_model",
    "load_tokenizer",
    "make_room",
    "map_weights",
    "model_name",
    "publish",
    "quantization_in",
    "quantization_of",
    "quiet_libraries",
    "read_header",
    "reset_head",
    "resolve_model",
    "sha256_of",
    "source_of",
    "unquantized",
    "warn_once",
    "writable_folder",
]
