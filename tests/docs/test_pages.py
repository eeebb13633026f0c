"""Methods, recipes and commands have pages that say what the code says, and what a document names exists."""

from __future__ import annotations

import ast
import posixpath
import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest
import typer.main
from generate import commands as command_pages
from generate.backbones import on_the_first_that_fits
from generate.documents import page_of, relinked
from generate.markdown import prose
from generate.methods import minimal_recipe
from generate.pages import pages as generated
from ruamel.yaml import YAML
from support.documents import ROOT, text_of
from support.snippets import blocks, commands
from support.tiny import tiny_model

import autopeft
from autopeft.cli.app import app
from autopeft.composition import composition_names
from autopeft.counting import count
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.recipe.library import recipe_names
from autopeft.search.space.space import Space
from autopeft.tasks.several import read_tasks

WRITTEN = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
TOLD = ["README.md", *WRITTEN]  # what people read and type from
DOCUMENTS = [*TOLD, "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"]
OPTIONS = {
    name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}


@cache
def pages() -> dict[str, str]:
    """All pages of the site by path: written ones as the site shows them, and those that are made."""
    own = {p.removeprefix("docs/"): relinked(text_of(p), p, p.removeprefix("docs/")) for p in WRITTEN}
    assert not set(own) & set(generated())
    return own | generated()


def test_each_method_recipe_and_command_has_its_page() -> None:
    found = set(pages())
    assert {f"methods/{name}.md" for name in method_names()} <= found
    assert {f"recipes/{name}.md" for name in recipe_names()} <= found
    assert {f"reference/commands/{name}.md" for name in OPTIONS} <= found


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page)]


@pytest.mark.parametrize("name", method_names())
def test_a_methods_page_says_what_its_class_says(name: str) -> None:
    page, method = pages()[f"methods/{name}.md"], get_method(name)
    for option in method.Config.model_fields:
        assert f"| `{option}` |" in page
    flat = " ".join(page.split())
    for paragraph in (method.__doc__ or "").split("\n\n"):
        assert " ".join(prose(" ".join(paragraph.split())).split()) in flat
    (svg,) = drawings(page)
    words = " ".join(t.text or "" for t in svg.iter("{http://www.w3.org/2000/svg}text"))
    assert (name if method.traits.level != "training" else "lora") in words
    first = page.index("\n## ")
    assert re.findall(r"^# (.+)$", page[:first], re.M) == [name]


@pytest.mark.parametrize("name", method_names())
def test_the_count_on_a_page_is_the_count(name: str) -> None:
    page = pages()[f"methods/{name}.md"]
    (recipe,) = (b.text for b in blocks(page) if b.language == "yaml")
    assert recipe == minimal_recipe(name)
    backbone, graph = on_the_first_that_fits(Recipe.from_yaml(recipe))
    counted = count(graph, backbone.spec)
    assert f"**{counted.deployed:,}** parameters" in page
    layers = re.search(r"That is (\d+) layers × ([\d,]+)\.", page)
    if layers:
        assert int(layers[1]) * int(layers[2].replace(",", "")) == counted.deployed
    line = re.search(r"= ([\d,]+) × `(\w+)`(?: \+ ([\d,]+))?\.", page)
    if line:
        size = getattr(get_method(name).Config(), line[2])
        slope, fixed = (int((line[i] or "0").replace(",", "")) for i in (1, 3))
        assert slope * size + fixed == counted.deployed
    assert layers or line or get_method(name).traits.level != "layers" or "In one layer alone" in page


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipes_page_has_its_file_and_its_graph(name: str) -> None:
    page = pages()[f"recipes/{name}.md"]
    written = next(b.text for b in blocks(page) if b.language == "yaml")
    assert Recipe.from_yaml(written).hash() == Recipe.named(name).hash()
    for entry in Recipe.named(name).entries():
        assert f"(../methods/{entry.method}.md)" in page
    assert len(drawings(page)) == 1


def test_all_compositions_are_told() -> None:
    page = pages()["methods/compositions.md"]
    assert re.findall(r"^## (\w+)$", page, re.M) == list(composition_names())
    assert len(drawings(page)) == len(composition_names())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_commands_page_has_each_of_its_options(name: str) -> None:
    page = pages()[f"reference/commands/{name}.md"]
    cells = " ".join(re.findall(r"^\| `([^`]+)` \|", page, re.M)).replace("\\|", "|")
    for parameter in command_pages.commands()[name].params:
        shown = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
        if not getattr(parameter, "hidden", False):
            named = set(re.split(r"[\s,\[\]]+", cells.lower()))
            assert {word.lower() for word in shown} <= named, parameter.name


def linked(text: str) -> list[str]:
    """What a page links to in this repository."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [target for target in re.findall(r"\]\((?!https?:)([^)#\s]*)[^)]*\)", outside) if target]


def test_links_between_pages_hold() -> None:
    found = pages()
    wrong = []
    for path, text in found.items():
        for target in linked(text):
            meant = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if meant not in found and meant != "index.md":
                wrong.append(f"{path}: {target}")
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_a_file_or_to_a_page_that_the_site_makes(document: str) -> None:
    for link in linked(text_of(document)):
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(document), link))
        assert (ROOT / meant).exists() or meant.removeprefix("docs/") in generated(), link


def test_links_lead_to_pages_or_become_names() -> None:
    text = "[a](../../experiments/winners/README.md#b) [c](../../LICENSE) [d](budget.md) [e](https://x.org)"
    assert relinked(text, "docs/how-to/x.md", "how-to/x.md") == (
        "[a](../results/experiments/winners.md#b) c (`LICENSE`) [d](budget.md) [e](https://x.org)"
    )
    assert page_of("experiments/nosuch/README.md") is None


def test_text_of_docstrings_is_no_markup() -> None:
    assert prose("a*b*c <tag> `x*y` [k] arXiv:2106.09685") == (
        "a\\*b\\*c &lt;tag\\> `x*y` \\[k\\] [arXiv:2106.09685](https://arxiv.org/abs/2106.09685)"
    )
    assert prose("See ACL:2023.emnlp-main.884.") == (
        "See [ACL:2023.emnlp-main.884](https://aclanthology.org/2023.emnlp-main.884)."
    )


def test_snippets_of_generated_pages_can_be_read() -> None:
    for page, text in generated().items():
        if page.startswith(("methods/", "recipes/", "reference/")):
            assert_snippets_can_be_read(text, page)


@pytest.mark.parametrize("page", TOLD)
def test_snippets_can_be_read(page: str) -> None:
    assert_snippets_can_be_read(text_of(page), page)


def assert_snippets_can_be_read(text: str, page: str) -> None:
    """As Python, as a recipe, a space or a set of tasks, or as commands with options that there are."""
    for block in blocks(text):
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "yaml":
            if any(word in block.text for word in ("choice:", "int:", "float:")):
                Space.from_yaml(block.text)
            elif "tasks:" in block.text:
                read_tasks(block.text, page)
            else:
                Recipe.from_yaml(block.text)
        if block.language == "json":
            YAML(typ="safe").load(block.text)
        for name, *words in commands(block) if block.shell else ():
            given = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert given <= OPTIONS[name], (page, name, given - OPTIONS[name])
        if block.elsewhere is not None:
            assert (ROOT / block.elsewhere).is_file(), page
        assert block.language in ("bash", "python", "yaml", "text", "toml", "console", "pycon", ""), page


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_options_and_functions_that_a_document_names_exist(document: str) -> None:
    text = text_of(document)
    code = re.findall(r"^(?:\S*/)?autopeft ([^#\n]*)|`autopeft ([^`]+)`|&& \S+/autopeft ([^\n]*)", text, re.M)
    called = [words for words in ("".join(parts).split() for parts in code) if words and words[0].islower()]
    for name, *words in called:
        assert name in OPTIONS, name
        given = {word for word in words if re.match(r"--?[a-z]", word)}
        assert given <= OPTIONS[name], (name, given - OPTIONS[name])
    assert len(called) > 10 or document != "README.md", "they are not found any more"
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= set().union(*OPTIONS.values())
    assert set(re.findall(r"\bautopeft\.([a-z_]+)\(", text)) <= set(autopeft.__all__)


@pytest.mark.parametrize("name", [n for n in method_names() if "text" not in get_method(n).traits.needs])
def test_a_minimal_recipe_attaches(name: str) -> None:
    backbone, graph = on_the_first_that_fits(Recipe.from_yaml(minimal_recipe(name)))
    recipe = graph.recipe  # with the names of tasks
    family = {"BERT-base": "bert", "LLaMA-7B": "llama", "GPT-2 small": "gpt2", "T5-base": "t5"}[backbone.name]
    with autopeft.attach(tiny_model(family), recipe, seed=0, runs=None) as hybrid:  # inputs are not there
        assert name in {*hybrid.modules, *(policy.method for policy in recipe.training.policies)}
        assert hybrid.counts().trained > 0 or name in ("lorahub", "mean_pooling")
