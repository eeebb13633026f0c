from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.toy import build, configured, toy_spec
from torch import nn


def _modules() -> dict[str, nn.Module]:
    spec = toy_spec()
    built = {n: build(n, spec)[0] for n in ("lora", "dora", "parallel_adapter", "ia3")}
    return {**built}


def _groups(modules: dict[str, nn.Module]) -> list[dict[str, Any]]:
    groups = [
        {"name": n, "params": list(m.parameters()), "lr": 1e-3 * (i + 1), "weight_decay": 0.1 * i}
        for i, (n, m) in enumerate(modules.items())
    ]
    return [*groups, {"name": "head", "params": [nn.Parameter(torch.zeros(3))], "lr": 5e-4}]


def test_every_parameter_in_one_group_with_the_exact_ratio() -> None:
    modules = _modules()
    given = _groups(modules)
    sizes = [len(g["params"]) for g in given]
    adjusted = configured("lora_plus", ratio=16.0).adjust(given, modules)
    assert [len(g["params"]) for g in given] == sizes
    ids = [id(p) for g in adjusted for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for g in given for p in g["params"])
    assert len(set(ids)) == len(ids)
    up = {id(p) for n in ("lora", "dora", "parallel_adapter") for p in modules[n].up_parameters()}  # type: ignore[operator]
    by_name = {g["name"]: g for g in adjusted}
    for group in given:
        fast = by_name.get(f"{group['name']}.up")
        assert by_name[group["name"]]["lr"] == group["lr"]
        assert all(id(p) not in up for p in by_name[group["name"]]["params"])
        if fast is not None:
            assert fast["lr"] == 16 * group["lr"]
            assert fast["weight_decay"] == group["weight_decay"]
            assert all(id(p) in up for p in fast["params"])
    assert {n for n in by_name if n.endswith(".up")} == {"lora.up", "dora.up", "parallel_adapter.up"}


def test_the_ratio_holds_at_every_step_of_a_schedule() -> None:
    modules = _modules()
    groups = configured("lora_plus", ratio=8.0).adjust(_groups({"lora": modules["lora"]}), modules)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 3) * 0.9**s)
    for _ in range(6):
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert rates["lora.up"] == pytest.approx(8 * rates["lora"])
        optimizer.step()
        schedule.step()


def test_ratio_one_is_plain_adamw() -> None:
    def trained(ratio: float | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module, sites = build("lora", toy_spec(layers=1))
        groups = _groups({"lora": module})
        if ratio is not None:
            groups = configured("lora_plus", ratio=ratio).adjust(groups, {"lora": module})
        optimizer = torch.optim.AdamW(groups)
        x = torch.randn(4, 6)
        for _ in range(3):
            optimizer.zero_grad()
            sum((module[s](x) - 1).pow(2).sum() for s in sites).backward()  # type: ignore[union-attr]
            optimizer.step()
        return [p.detach() for p in module.parameters()]

    plain, one, more = trained(None), trained(1.0), trained(4.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, one, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, more, strict=True))


def test_groups_as_peft_makes_them() -> None:
    peft_optimizers = pytest.importorskip("peft.optimizers")
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(6, 6)

    theirs = get_peft_model(Net(), LoraConfig(r=8, target_modules=["q"]))
    optimizer = peft_optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.0
    )
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    by_factor = {n.split(".")[-3]: rates[id(p)] for n, p in theirs.named_parameters() if p.requires_grad}
    module, _ = build("lora", toy_spec(layers=1), sites=("q",))
    ours = configured("lora_plus", ratio=4.0).adjust(_groups({"lora": module}), {"lora": module})
    mine = {n: g["lr"] for n, p in module.named_parameters() for g in ours for q in g["params"] if p is q}
    assert {n.split(".")[-1]: r for n, r in mine.items()} == {k[-1]: v for k, v in by_factor.items()}


PHM: dict[str, Any] = {"kadaptation": {"phm_dim": 2}}
LIKE_LORA = (
    "lora", "dora", "vera", "krona", "moslora", "lora_dropout", "capaboost", "hiwi", "dylora", "sora",
    "autolora", "periodic_lora", "laplace_lora",
)  # fmt: skip


@pytest.mark.parametrize("name", LIKE_LORA)
def test_up_factors_are_those_that_start_at_zero(name: str) -> None:
    module, sites = build(name, toy_spec(), sites=("q", "v"))
    up = {id(p) for p in module.up_parameters()}
    zero = {id(p) for p in module.parameters() if not p.any()}
    assert up == zero
    assert len(up) >= len(sites)


@pytest.mark.parametrize(("name", "factor"), [("adalora", "P"), ("kadaptation", "right")])
def test_up_factors_of_other_forms(name: str, factor: str) -> None:
    module, sites = build(name, toy_spec(hidden=8, kv=8), sites=("q", "v"), **PHM.get(name, {}))
    up = {id(p) for p in module.up_parameters()}
    assert up == {id(getattr(module[s], factor)) for s in sites}


def test_refuses_a_ratio_below_one() -> None:
    with pytest.raises(ValidationError):
        configured("lora_plus", ratio=0.5)
