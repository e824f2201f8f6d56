"""Nothing in this project reports to anybody: the project's own settings say so."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]


def printed(*command: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_dvc_sends_no_analytics_and_looks_for_no_update():
    config = (ROOT / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "check_update = false" in config


def test_prefect_starts_here_with_its_analytics_off():
    # Importing the server also proves that the pinned fastapi is one that it works with.
    code = (
        "import prefect.server.api.server\n"
        "from prefect.settings import get_current_settings\n"
        "print(get_current_settings().server.analytics_enabled)"
    )
    assert printed(sys.executable, "-c", code) == "False"


def test_great_expectations_runs_with_its_analytics_off():
    code = (
        "import os\n"
        "import pandas as pd\n"
        "from pipeline.expectations import check\n"
        "check(pd.DataFrame({'id': ['a']}), [], 'id')\n"
        "print(os.environ['GX_ANALYTICS_ENABLED'])"
    )
    assert printed(sys.executable, "-c", code) == "false"


def test_great_expectations_has_no_analytics_package():
    # Looking for the module would import all of Great Expectations.
    files = [str(file) for file in distribution("great-expectations").files or ()]
    assert "great_expectations/__init__.py" in files
    assert not [name for name in files if name.startswith("great_expectations/analytics")]
