"""Make the pages of `dvc plots` readable offline.

DVC's own page loads Vega from a content delivery network, so without one its curves stay blank.
`python -m pipeline.plots` writes a page template that holds Vega itself, and sets
`plots.html_template` to it in `.dvc/config.local`. DVC refuses to draw when a template that its
configuration names is missing; so both are made here, for this machine, and neither is in git.
"""

import subprocess
import sys
from pathlib import Path

import vl_convert

from dsfer.errors import DataError
from dsfer.files import write_bytes
from pipeline.stages import run

TEMPLATE = Path(".dvc/plots-offline.html")

# DVC replaces the names in braces; it would put its CDN links where {scripts} stands.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>Plots</title>
<style>body { font-family: system-ui, sans-serif; margin: 2rem; }</style>
<script>
BUNDLE
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def vega_lite_version() -> str:
    """Newest bundled Vega-Lite of major version 5, the one that DVC's plots are written for."""
    versions = [name for name in vl_convert.get_vegalite_versions() if name.startswith("5.")]
    return max(versions, key=lambda name: int(name.split(".")[1]))


def offline_template() -> str:
    """Page template for `dvc plots` that holds Vega, Vega-Lite and Vega-Embed, about 0.9 MB."""
    bundle = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version()
    )
    return _PAGE.replace("BUNDLE", bundle)


def main() -> None:
    """Write the template into the `.dvc` folder of the current project, and make DVC use it.

    Raises:
        DataError: the current folder is no DVC project.
    """
    if not TEMPLATE.parent.is_dir():
        raise DataError(
            "no DVC project here", where=Path.cwd(), mend="change to the folder of dvc.yaml"
        )
    write_bytes(TEMPLATE, offline_template().encode())
    setting = ["config", "--local", "plots.html_template", TEMPLATE.name]
    subprocess.run([sys.executable, "-m", "dvc", *setting], check=True)
    print(f"wrote {TEMPLATE}")


if __name__ == "__main__":
    run(main)
