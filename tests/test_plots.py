import pytest

from dsfer.errors import DataError
from pipeline import plots
from tests.pages import addresses


@pytest.fixture(scope="module")
def template():
    return plots.offline_template()


def test_template_holds_vega_and_leaves_dvcs_links_out(template):
    assert "{plot_divs}" in template and "{scripts}" not in template
    assert "window.vegaEmbed" in template
    assert addresses(template) == []


def test_dvc_fills_the_template(template):
    from dvc_render.html import HTML

    page = HTML(template).with_scripts('<script src="https://cdn.test/vega"></script>')
    filled = page.with_element("<div id='curve'></div>").embed()
    assert "<div id='curve'></div>" in filled and "cdn.test" not in filled


def test_main_writes_into_the_project(tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"dvc\.yaml"):
        plots.main()
    (tmp_path / ".dvc").mkdir()
    plots.main()
    assert (tmp_path / ".dvc/plots-offline.html").read_text() == template
    assert "plots-offline.html" in (tmp_path / ".dvc/config.local").read_text()
