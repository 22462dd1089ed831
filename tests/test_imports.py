"""What the source may and may not do, read from the source: layers, and the rules that keep a library safe.

Layers (docs/architecture.md): 0 values and protocols, without torch; 1 declaration and supernet; 2 families,
which do not know each other; 3 drivers; 4 recipes and the command. An import goes down or stays in a family.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sartor

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sartor"

LAYERS: dict[int, tuple[str, ...]] = {
    0: (
        "architecture",
        "atomic",
        "calibration",
        "encodings",
        "gates",
        "limits",
        "objective",
        "own",
        "pareto",
        "protocols",
        "ranking",
        "sizes",
        "space",
        "trial",
        "units",
    ),
    1: (
        "assignments",
        "choice",
        "distributed",
        "nn",
        "optimizers",
        "permutation",
        "relaxation",
        "supernet",
        "workload",
    ),
    2: (
        *("adapt", "costs", "data", "deploy", "differentiable", "evaluation", "oneshot", "predictors", "report"),
        *("spaces", "strategies", "tables", "targets", "task"),
    ),
    3: ("checkpoint", "fit", "outcome", "processes", "run", "search", "snapshot"),
    4: ("__init__", "__main__", "bench", "cli", "names", "recipes"),
}
LAYER = {part: layer for layer, parts in LAYERS.items() for part in parts}

# Between families of layer 2, and nothing else.
ALLOWED = {
    ("oneshot", "adapt"),  # where a pretrained network has its projections and MLPs, by the rules of its family
    ("adapt", "deploy"),  # files that appear whole or not at all, and how errors of other libraries are told
    ("oneshot", "data"),  # two views of an image, as augmented there; samples drawn by their numbers
    ("strategies", "predictors"),
    ("data", "task"),  # `text_task` returns a task, which holds splits of `data`
    ("costs", "predictors"),  # a profile chooses one of them
    ("costs", "targets"),
    ("tables", "spaces"),
    ("targets", "deploy"),
    ("task", "data"),
}

# Families whose files are methods: each may import the shared files (`_name.py`, `losses.py`, `cell_operations.py`) and
# the parts of its own (`method_part.py`), but no other method.
METHODS = ("oneshot", "differentiable", "strategies", "spaces", "predictors")
SHARED = (
    *("._", ".losses", ".cell_operations"),
    *(".divergences", ".sampling", ".splitting"),
    *(".alphas", ".descent", ".diagnostics", ".importance", ".mixers", ".penalties", ".readout", ".relaxations"),
)


@dataclass(frozen=True)
class Import:
    """`module` is imported by the file of module `source`; `lazily` inside a function."""

    source: str
    module: str
    lazily: bool
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.module}"


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return names


MODULES = modules()
TREES = {name: ast.parse(path.read_bytes(), str(path)) for name, path in MODULES.items()}


def walk(node: ast.AST, lazily: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all nodes that run, with whether they do so only in a call; TYPE_CHECKING blocks do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = lazily or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, inside)


def imports(name: str) -> Iterator[Import]:
    for node, lazily in walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, lazily, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} has a relative import; write the whole name"
            module = str(node.module)
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield Import(name, whole if whole in MODULES else module, lazily, node.lineno)


ALL = [one for name in MODULES for one in imports(name)]
OWN = [one for one in ALL if one.module.split(".")[0] == "sartor"]


def part(module: str) -> str:
    """Return the part of the package a module belongs to: its first name below `sartor`."""
    return [*module.split("."), "__init__"][1]


def test_every_part_has_its_layer() -> None:
    missing = {part(name) for name in MODULES} - set(LAYER)
    assert not missing, f"name the layer of {', '.join(sorted(missing))}"


def is_downward(one: Import) -> bool:
    source, imported = part(one.source), part(one.module)
    if one.module == "sartor":  # for `__version__`, which is all that is there
        return True
    if source == imported or (source, imported) in ALLOWED:
        return True
    return LAYER[imported] < LAYER[source] or LAYER[imported] == LAYER[source] != 2


def test_imports_go_down() -> None:
    assert not [str(one) for one in OWN if not is_downward(one)]


def test_only_types_may_come_from_torch_in_layer_0() -> None:
    light = {*LAYERS[0]}
    heavy = ("torch", "safetensors", "sklearn", "matplotlib", "plotly", "PIL")
    assert not [str(one) for one in ALL if part(one.source) in light and one.module.split(".")[0] in heavy]


@pytest.mark.parametrize("module", ["sartor", *(f"sartor.{name}" for name in LAYERS[0])])
def test_layer_0_runs_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_imports_no_other_method() -> None:
    def is_method(module: str) -> bool:
        shared = any(mark in module for mark in SHARED)
        return len(module.split(".")) == 3 and part(module) in METHODS and not shared

    wrong = [one for one in OWN if is_method(one.source) and is_method(one.module)]
    wrong = [one for one in wrong if not one.module.startswith(f"{one.source}_")]
    assert not [str(one) for one in wrong if part(one.source) == part(one.module)]


OPTIONAL = {
    *("onnx", "onnxscript", "onnxruntime", "openvino", "ncnn", "MNN", "tensorrt"),
    *("transformers", "datasets", "tokenizers", "ray", "lightgbm", "pyarrow", "huggingface_hub"),
}
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    assert not [str(one) for one in ALL if one.module.split(".")[0] in OPTIONAL and not one.lazily]


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=\[]", text)[0] for text in project["dependencies"]}
    core = {IMPORTED_AS.get(name, name) for name in declared}
    used = {one.module.split(".")[0] for one in ALL} - {"sartor", *sys.stdlib_module_names}
    assert used - OPTIONAL == core


FORBIDDEN_CALLS = {
    "print": "write to sys.stdout in the command; return or log elsewhere",
    "eval": "never run a user's text",
    "exec": "never run a user's text",
    "pickle.load": "never unpickle",
    "pickle.loads": "never unpickle",
    "joblib.load": "never unpickle",
    "torch.manual_seed": "pass a generator, or seed inside torch.random.fork_rng",
}
EXCEPTIONS = {
    (
        "sartor.fit",
        "torch.manual_seed",
    ): "inside fork_rng: what torch draws in a step is a function of the step",
    (
        "sartor.recipes.job",
        "torch.manual_seed",
    ): "inside fork_rng: initial weights are a function of the seed",
    ("sartor.processes", "pickle.loads"): "what a process sent to the child it started itself",
}
# The global generators are these modules but for the classes that a caller makes a generator of his own with.
OWN_GENERATORS = ("random.Random", "np.random.default_rng", "np.random.Generator", "np.random.SeedSequence")


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for node, _ in walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def forks_rng(name: str) -> bool:
    """Say whether a file seeds torch for a block of its own only; the caller's generators are untouched."""
    return any(function == "torch.random.fork_rng" for function, _ in calls(name))


def complaint(function: str, call: ast.Call, imported: set[str]) -> str | None:
    if function in FORBIDDEN_CALLS:
        return FORBIDDEN_CALLS[function]
    is_random = function.startswith("np.random.") or ("random" in imported and function.startswith("random."))
    if is_random and not function.startswith(OWN_GENERATORS):
        return "draw from an rng that was passed in"
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if function == "torch.load" and keywords.get("weights_only") != "True":
        return "give weights_only=True"
    if function in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        return "give allow_pickle=False"
    return None


@pytest.mark.parametrize("name", MODULES)
def test_no_file_does_what_a_library_must_not(name: str) -> None:
    plain = {alias.name for node in ast.walk(TREES[name]) if isinstance(node, ast.Import) for alias in node.names}
    found = [
        (function, call.lineno, complaint(function, call, plain))
        for function, call in calls(name)
        if (name, function) not in EXCEPTIONS and not (function == "torch.manual_seed" and forks_rng(name))
    ]
    assert not [f"{name}:{line} calls {function}: {why}" for function, line, why in found if why]


def test_every_exception_is_still_one() -> None:
    assert not [key for key in EXCEPTIONS if key[1] not in {function for function, _ in calls(key[0])}]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_draws_numbers_while_it_is_imported(name: str) -> None:
    drawing = [
        (ast.unparse(node.func), node.lineno)
        for node, lazily in walk(TREES[name])
        if isinstance(node, ast.Call) and not lazily and isinstance(node.func, ast.Attribute)
    ]
    starts = ("random.", "np.random.", "torch.rand", "torch.Generator")
    assert not [f"{name}:{line} {call}" for call, line in drawing if call.startswith(starts)]


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{name} has {lines} lines"
    functions = (node for node, _ in walk(TREES[name]) if isinstance(node, ast.FunctionDef))
    long = [f"{one.name}: {body_lines(one)}" for one in functions if body_lines(one) > 40]
    assert not long, f"{name}: {', '.join(long)}"


def body_lines(function: ast.FunctionDef) -> int:
    """Count a function's lines without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


def declared_for_types() -> dict[str, str]:
    """Return what the package's TYPE_CHECKING block says: public name to module."""
    block = next(node for node in TREES["sartor.__init__"].body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_types_and_values_of_the_public_names_agree() -> None:
    values = {name: f"sartor.{module}" for name, module in sartor._NAMES.items()}
    assert declared_for_types() == {**dict.fromkeys(sartor._MODULES, "sartor"), **values}
    assert [*sartor._MODULES] == sorted(sartor._MODULES)
    assert [*sartor._NAMES] == sorted(sartor._NAMES)
    assert set(sartor.__all__) == {"__version__", *sartor._MODULES, *sartor._NAMES}
    assert dir(sartor) == sorted(sartor.__all__)


@pytest.mark.parametrize("name", sartor.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sartor, name) is not None


def test_no_public_name_is_a_module_and_something_else() -> None:
    files = {module.name for module in pkgutil.iter_modules(sartor.__path__)}
    assert set(sartor._MODULES) <= files
    assert not files & set(sartor._NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sartor'"):
        sartor.Sartor  # noqa: B018
    importlib.reload(sartor)
