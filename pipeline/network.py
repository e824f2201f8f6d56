"""What one network's results depend on of what all networks share: code, registry and recipes.

Files of other networks do not count, nor do their entries: who adds or edits one makes no result of
another stale.
"""

from dataclasses import asdict
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import dsfer
from dsfer.errors import ConfigError
from dsfer.files import sha256_file
from dsfer.models import MODELS, registry
from pipeline.params import Settings
from pipeline.recipes import recipe_layers

ROOT = Path(dsfer.__file__).parents[1]
"""The folder that modules are named from."""


def source_files(model: str) -> list[Path]:
    """Files of `dsfer/models` that a network needs, the registry apart, in order of their names.

    They are its module and what this imports by statements, directly or through other modules of
    `dsfer`, also inside functions. Nothing is run for that, nor is torch loaded.

    Args:
        model: its name.

    Raises:
        ConfigError: it has no module.
    """
    module = MODELS[model].path.rpartition(".")[0]
    finder = ModuleFinder([str(ROOT)], excludes=[registry.__name__])
    try:
        finder.import_hook(module)
    except ImportError as error:
        raise ConfigError(
            f"{model} is to be in module {module}, which is not there",
            where=registry.__file__,
            mend="write the module, or correct the path in MODELS",
        ) from error
    found = (vars(each)["__file__"] for each in finder.modules.values())  # null if built in
    files = (Path(name) for name in found if name)
    return sorted(file for file in files if file.is_relative_to(ROOT / "dsfer/models"))


def network_code(model: str) -> dict[str, Any]:
    """A network's entry in the registry, and the SHA-256 of each of its files; JSON-able."""
    hashes = {file.relative_to(ROOT).as_posix(): sha256_file(file) for file in source_files(model)}
    return {"entry": asdict(MODELS[model]), "files": hashes}


def network_recipe(settings: Settings) -> dict[str, Any]:
    """What the recipe of a run says before params.yaml does; JSON-able."""
    return recipe_layers(settings.recipe_name, settings.params.model, settings.data.entry.name)
