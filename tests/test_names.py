"""Names: what is built in is found by reading source, and a name leads to the one class it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sartor import names


def test_what_is_built_in() -> None:
    assert "mobilenet" in names.built_in("spaces")
    assert {"nsga2", "random_search", "regularized_evolution"} <= set(names.built_in("strategies"))
    assert "bignas" in names.built_in("methods")
    assert {"torch", "onnxruntime", "onnxruntime:int8"} <= set(names.built_in("targets"))


@pytest.mark.parametrize("family", ["spaces", "strategies", "methods"])
def test_every_built_in_name_leads_to_a_class_of_its_family(family: str) -> None:
    for name, title in names.built_in(family).items():
        found = names.load(family, name)
        assert found.__module__.rpartition(".")[2] == name
        assert all(callable(getattr(found, method)) for method in names.FAMILIES[family][1])
        assert title.endswith("."), f"{name} has a title that is a sentence"


def test_ones_own_class(tmp_path: Path) -> None:
    path = tmp_path / "mine_for_names.py"
    path.write_text("class Mine:\n    def ask(self, rng): ...\n    def tell(self, trial): ...\n")
    found = names.load("strategies", f"{path}:Mine")
    assert found.__name__ == "Mine"
    names.check("strategies", f"{path}:Mine")
    with pytest.raises(ValueError, match="is no space: it has no method forward"):
        names.load("spaces", f"{path}:Mine")


@pytest.mark.parametrize(
    ("family", "name", "told"),
    [
        ("strategies", "nsga3", "did you mean 'nsga2'"),
        ("methods", "bignass", "did you mean 'bignas'"),
        ("strategies", "_operators", "no strategy is named"),
        ("strategies", "../strategies/nsga2", "no strategy is named"),
        ("spaces", "", "no space is named ''"),
        ("targets", "onnxruntime:int4", "built in: torch, .*onnxruntime, onnxruntime:int8"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(family: str, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        names.check(family, name)


def test_a_method_shares_weights_or_reads_an_architecture_out_or_neither() -> None:
    kinds = {name: (names.shares_weights(name), names.reads_out(name)) for name in names.built_in("methods")}
    assert {name for name, kind in kinds.items() if kind == (False, False)} == {"bossnas", "supertickets", "supervised"}
    assert kinds["bignas"] == (True, False) and kinds["darts"] == (False, True)
    with pytest.raises(ValueError, match="leaves nothing to search"):
        names.check_search("bossnas")
