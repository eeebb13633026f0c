"""Sites of the families by map are where the maps say, as the models' own forwards show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.families import ENCODER_DECODERS, ENCODERS, FAMILIES, VISION
from support.installing import hooked
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from autopeft.backbones import Place, StackPlaces, base_model_of, layout_of, spec_of, spec_of_model
from autopeft.counting import count
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.spec import LINEAR_SITES

NAMES = (*ENCODERS, *ENCODER_DECODERS, *VISION)
