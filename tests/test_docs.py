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


def test_the_loop_of_benchmarks_names_every_one_that_compares_ways():
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"for name in (.*); do\n", page)
    compare = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if re.search(r"(?<!def )\bcompare\(", path.read_text(encoding="utf-8"))
    }
    assert set(loop.split()) == compare
    for name in compare:
        assert f"\n    python -m benchmarks.{name}" in page
