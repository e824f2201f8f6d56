"""Stage network: the code and the recipe of the chosen network, for the stages after it."""

from dsfer.files import write_json
from pipeline.network import network_code, network_recipe
from pipeline.params import current_settings
from pipeline.stages import run


def main() -> None:
    """Write what results of the chosen network depend on; another network changes nothing in it."""
    settings = current_settings()
    record = network_code(settings.params.model) | {"recipe": network_recipe(settings)}
    write_json(settings.model_folder / "network.json", record)


if __name__ == "__main__":
    run(main)
