"""The files lie in floors: each imports only from those below it, and the two halves meet only at the top."""

import ast
from pathlib import Path

import diffunet

PACKAGE = Path(__file__).parents[2] / "diffunet"
FLOORS = [
    "settings",
    "lean",
    "storage",
    "randomness",
    "conditioning",
    "layers",
    "presets",
    "unet",
    "inspection",
    "tiles",
    "encoders",
    "denoiser",
    "hosts",
    "objective",
    "diffusion",
    "edm",
    "flow",
    "execution",
    "sampling",
    "augmentation",
    "decoding",
    "sources",
    "data",
    "fetching",
    "interruption",
    "averages",
    "log",
    "state",
    "training",
    "throughput",
    "generation",
    "config",
    "frontend",
    "checkpoint",
    "drawing",
    "metrics",
    "classifier",
    "extractors",
    "evaluation",
    "health",
    "interop",
    "guided_diffusion",
    "console",
    "network_commands",
    "sample_command",
    "previews",
    "forecast",
    "train_command",
    "quality_commands",
    "commands",
]
NETWORKS = {"conditioning", "layers", "presets", "unet", "inspection", "tiles", "encoders", "denoiser", "hosts"}
PROCEDURE = {
    "randomness",
    "objective",
    "diffusion",
    "edm",
    "flow",
    "execution",
    "sampling",
    "augmentation",
    "decoding",
    "sources",
    "data",
    "fetching",
    "interruption",
    "averages",
    "log",
    "state",
    "training",
    "throughput",
}


def imports(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {node.module or alias.name for node in nodes for alias in node.names}


def test_every_file_has_its_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(FLOORS)


def test_no_file_hides_a_name_of_the_package():
    """`diffunet.x` is the file x.py once that is imported, whatever else is called so."""
    assert not set(FLOORS) & set(diffunet.__all__)


def test_files_import_only_from_below():
    for place, module in enumerate(FLOORS):
        assert imports(module) <= set(FLOORS[:place]), module


def test_networks_and_procedure_do_not_know_each_other():
    for module in NETWORKS:
        assert not imports(module) & PROCEDURE, module
    for module in PROCEDURE:
        assert not imports(module) & NETWORKS, module


def test_help_needs_no_slow_library():
    slow = {"accelerate", "datasets", "diffusers", "huggingface_hub", "matplotlib", "sklearn"}
    slow |= {"torch_fidelity", "torchvision", "transformers"}
    for module in FLOORS:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.split(".")[0] for node in at_import for alias in node.names}
        names |= {(node.module or "").split(".")[0] for node in at_import if isinstance(node, ast.ImportFrom)}
        assert not names & slow, module
