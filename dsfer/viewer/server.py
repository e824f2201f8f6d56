"""The server of the page: on this machine only, and of one folder of maps only."""

import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from rich.console import Console
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dsfer.errors import ConfigError, DsferError
from dsfer.viewer.folder import OUTLINES, ChangeFolder
from dsfer.viewer.outlines import neighbour, outlines_in_view
from dsfer.viewer.tiles import date_tile, error_tile, is_tile, probability_tile

HOST = "127.0.0.1"

PAGE = Path(__file__).with_name("page")

FRESH = {"Cache-Control": "no-store"}
"""Another folder may be served from the same port next."""


def application(folder: ChangeFolder) -> Starlette:
    """The page and what it asks for.

    Addresses hold numbers only, and names of a fixed set: no path of the disk is ever made of one.

    Args:
        folder: the maps.
    """
    drawn: dict[str, tuple[Callable[[int, int, int], bytes], str]] = {
        "before": (lambda *tile: date_tile(folder, "before", *tile), "image/png"),
        "after": (lambda *tile: date_tile(folder, "after", *tile), "image/png"),
        "probability": (
            lambda *tile: probability_tile(folder, *tile),
            "application/octet-stream",
        ),
    }
    if folder.scored:
        drawn["errors"] = (lambda *tile: error_tile(folder, *tile), "image/png")
    outlines = folder.path / OUTLINES

    def description(_: Request) -> Response:
        return JSONResponse(folder.description(), headers=FRESH)

    def tile(request: Request) -> Response:
        place = request.path_params
        layer, level, x, y = (place[name] for name in ("layer", "level", "x", "y"))
        if layer not in drawn or not is_tile(folder, level, x, y):
            return _refused("no such tile")
        draw, kind = drawn[layer]
        return Response(draw(level, x, y), media_type=kind, headers=FRESH)

    def in_view(request: Request) -> Response:
        place = request.path_params
        left, top, right, bottom = (place[name] for name in ("left", "top", "right", "bottom"))
        level = min(place["level"], folder.levels)
        found = outlines_in_view(outlines, folder.grid, level, (left, top, right, bottom))
        return JSONResponse(found, headers=FRESH)

    def beside(request: Request) -> Response:
        way = request.path_params["way"]
        if way not in ("next", "previous"):
            return _refused("no such way")
        found = neighbour(outlines, folder.grid, request.path_params["id"], way)
        return JSONResponse(found, headers=FRESH)

    def said(_: Request, error: Exception) -> Response:
        return _refused(str(error))

    return Starlette(
        routes=[
            Route("/map.json", description),
            Route("/tiles/{layer}/{level:int}/{x:int}/{y:int}", tile),
            Route("/outlines/{level:int}/{left:int}/{top:int}/{right:int}/{bottom:int}", in_view),
            Route("/outlines/{way}/{id:int}", beside),
            Mount("/leaflet", StaticFiles(packages=[("js_lib_leaflet", "static/js_lib_leaflet")])),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        # A page of the internet whose name was made to lead here is turned away.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers={DsferError: said},
    )


def _refused(message: str) -> Response:
    return JSONResponse({"message": message}, status_code=404, headers=FRESH)


def serve(folder: ChangeFolder, *, port: int = 0, browser: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        folder: the maps.
        port: of the loopback interface; 0 takes a free one.
        browser: open the page in the user's browser, where there is a screen.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(
            f"cannot be listened at ({os.strerror(error.errno or 0)})",
            where=f"port {port}",
            mend="give another --port, or none to take a free one",
        ) from error
    # GDAL warns of a file whenever it opens it, which is for every tile.
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    with listener, suppress(KeyboardInterrupt):
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        console = Console(highlight=False, soft_wrap=True)
        for name in folder.dates:
            if problem := folder.problem(name):
                console.print(f"shown without the raster {name}: {problem}", markup=False)
        console.print(f"{folder.path} at {address} (Ctrl-C ends it)", markup=False)
        if browser and _has_screen():
            webbrowser.open(address)
        config = uvicorn.Config(
            application(folder), log_config=None, access_log=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])


def _has_screen() -> bool:
    """Whether a browser would be a window, not a program that takes over this terminal."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
