from __future__ import annotations

from autopeft.recipe import TrainingSection

SECTION = TrainingSection.model_validate(
    {
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "groups": {
            "top": {"learning_rate": 5e-3},
            "lora": {"learning_rate": 2e-3, "weight_decay": 0.2},
            "head": {"weight_decay": 0.0},
        },
    }
)


def test_an_entrys_own_group_goes_before_its_methods_and_that_before_the_default() -> None:
    assert SECTION.settings_of("top", "lora") == (5e-3, 0.1), "nothing of the method's group is mixed in"
    assert SECTION.settings_of("lora_2", "lora") == (2e-3, 0.2)
    assert SECTION.settings_of("ia3", "ia3") == (1e-3, 0.1)
    assert SECTION.settings_of() == (1e-3, 0.1)


def test_a_setting_of_zero_is_a_setting() -> None:
    found = SECTION.settings_of("head")
    assert (found.learning_rate, found.weight_decay) == (1e-3, 0.0)


def test_the_group_of_the_first_name_that_has_one() -> None:
    assert SECTION.group_of("lora_2", "lora") is SECTION.groups["lora"]
    assert SECTION.group_of("top", "lora") is SECTION.groups["top"]
    assert SECTION.group_of("ia3") is None
