"""Documents that speak of tests name such as there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_a_document_names_exists():
    named = {
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"`(test_\w+)[`\[]", page.read_text(encoding="utf-8"))
    }
    defined = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(named) > 50
    assert named <= defined, named - defined
