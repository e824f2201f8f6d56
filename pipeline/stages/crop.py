"""Stage crop: scenes become tiles, their tars and the manifest."""

from functools import partial

from dsfer.data.crop import crop_scenes
from dsfer.data.fragments import cut_fragments
from dsfer.data.scenes import read_scenes
from dsfer.data.workers import Spread
from pipeline.cluster import spread_out
from pipeline.params import Settings, current_settings
from pipeline.stages import run


def main() -> None:
    """Cut the scenes of the chosen data set on a grid, or into fragments where it says so."""
    settings = current_settings()
    spread_out(settings.params.cluster, "crop", partial(cut, settings))


def cut(settings: Settings, spread: Spread) -> None:
    """Run the stage on the machines that `spread` stands for."""
    data = settings.data
    scenes = read_scenes(settings.folder / "raw" / "scenes.json")
    out = settings.folder / "tiles"
    if fragments := data.release.fragments:
        cut_fragments(
            scenes,
            out,
            size=data.tile_size,
            counts=fragments.counts,
            seed=fragments.seed,
            label_rule=data.label_rule,
            bands=data.bands,
            spread=spread,
        )
    else:
        crop_scenes(
            scenes,
            out,
            tile_size=data.tile_size,
            padding=data.padding,
            label_rule=data.label_rule,
            bands=data.bands,
            spread=spread,
        )


if __name__ == "__main__":
    run(main)
