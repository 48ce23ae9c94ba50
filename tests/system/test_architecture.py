"""The architecture: rooms on floors, small files, light imports, public names that editors see."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import diffunet

PACKAGE = Path(diffunet.__file__).parent
FLOORS = [
    {"core"},
    {"models", "objectives", "data", "training"},
    {"conditions"},
    {"sampling", "evaluation"},
    {"runs"},
    {"interop"},
    {"tasks", "web"},
    {"cli"},
]
"""A package imports only from floors above it in this list; packages on one floor never import each other."""
FILES = sorted(PACKAGE.glob("*/**/*.py"))
MAX_LINES = 400
SLOW = {"accelerate", "datasets", "diffusers", "huggingface_hub", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn"}
SLOW |= {"nibabel", "tifffile", "skimage", "gemmi", "monai"}
SLOW |= {"gradio", "tensorboard", "torch_fidelity", "tokenizers", "torchvision", "transformers"}


def rooms_imported(file: Path) -> set[str]:
    """Return the rooms that a file imports from, wherever in the file, by relative or absolute imports."""
    parts = ("diffunet", *file.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else ()
            modules = [".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("diffunet.")}
    return found


def test_rooms_import_only_from_floors_below():
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set().union(*FLOORS)
    for number, floor in enumerate(FLOORS):
        allowed = set().union(*FLOORS[:number])
        for file in FILES:
            if (room := file.relative_to(PACKAGE).parts[0]) in floor:
                assert rooms_imported(file) <= allowed | {room}, file


def test_no_module_is_outside_of_a_room():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_file_is_long():
    for file in FILES:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, file


def test_help_needs_no_slow_library():
    """No module imports one when it is imported itself, outside of `if TYPE_CHECKING`."""
    for file in [*FILES, PACKAGE / "__init__.py", PACKAGE / "__main__.py"]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
        assert not names & SLOW, file


def test_public_names_are_importable_and_visible_to_editors():
    """The stub lists the same names that the package offers, each from the module that has it."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(diffunet.__all__) == sorted(homes)
    listed = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert sorted(ast.literal_eval(listed)) == sorted(homes)
    assert set(homes) <= set(dir(diffunet))
    for name, module in homes.items():
        assert getattr(diffunet, name) is getattr(importlib.import_module(f"diffunet.{module}"), name)
    assert (PACKAGE / "py.typed").exists()


def test_no_public_name_is_hidden_by_a_room():
    assert not set(diffunet.__all__) & set().union(*FLOORS)
    with pytest.raises(AttributeError, match="Unett"):
        _ = diffunet.Unett


def test_packages_contain_only_modules_and_a_docstring():
    for file in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert len(tree.body) == 1, file
        assert re.search(r"\w\.", ast.get_docstring(tree) or ""), file
