"""Side by side on this machine: ways to run Dsfer-Net on the same pairs, as ratios.

    python benchmarks/network.py [--size 256] [--batch 2]

Every way runs in turn, several rounds, and the median of the rounds is compared with the first.
"""

import statistics
import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console
from rich.table import Table

import dsfer
from dsfer.models.hopfield import FeatureRetrieval

ROUNDS = 5


def main(size: int = 256, batch: int = 2) -> None:
    """Time forward passes and print the ratios."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = dsfer.create_model("dsfer-net", image_size=size).eval().to(device)
    last = dsfer.create_model("dsfer-net", image_size=size).eval().to(device)
    last = last.to(memory_format=torch.channels_last)
    pairs = torch.randn(2, batch, 3, size, size, device=device)
    nhwc = [image.contiguous(memory_format=torch.channels_last) for image in pairs]

    def dates_apart() -> None:
        for image in pairs:
            model.encoder(image)

    def dates_stacked() -> None:
        model.encoder(pairs.flatten(0, 1))

    compare(
        "encoder, both dates",
        {"one after the other": dates_apart, "as one batch": dates_stacked},
        device,
    )
    compare(
        "whole network",
        {"contiguous": lambda: model(*pairs), "channels last": lambda: last(*nhwc)},
        device,
    )
    retrieval = FeatureRetrieval(512, size // 8).eval().to(device)
    features = torch.randn(2 * batch, 512, size // 8, size // 8, device=device)
    compare(
        "retrieval at level 4",
        {
            "softmax written out": lambda: explicit_retrieval(retrieval, features),
            "scaled_dot_product_attention": lambda: retrieval(features),
        },
        device,
    )


def explicit_retrieval(retrieval: FeatureRetrieval, features: torch.Tensor) -> torch.Tensor:
    """Eqs. 1 and 2 with the matrix of scores in memory."""
    patterns = retrieval.norm(features).flatten(2).transpose(1, 2)
    first, second = patterns.chunk(2)
    state = retrieval.query((first - second).abs())
    retrieved = [
        (retrieval.beta * state @ retrieval.key(stored).transpose(1, 2)).softmax(-1)
        @ retrieval.value(stored)
        for stored in (first, second)
    ]
    return (retrieved[0] + retrieved[1]).sigmoid()


def compare(title: str, ways: dict[str, Callable[[], object]], device: torch.device) -> None:
    """Run every way in turn and print the median times and their ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_number in range(ROUNDS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_number:  # the first one warms up
                    times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    table = Table(title, "ms", "times as fast", min_width=60)
    for name, median in medians.items():
        table.add_row(name, f"{1000 * median:.1f}", f"{first / median:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
