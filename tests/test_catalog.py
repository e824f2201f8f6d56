from pathlib import Path

import pytest

from dsfer.errors import ConfigError
from dsfer.released import DSFER_NET
from pipeline.catalog import CATALOG, OWN_DATA, catalog_entry, load_catalog
from pipeline.frozen import did_you_mean

ENTRY = """\
mine:
  title: t
  description: d
  citation: c
  licence: l
  homepage: h
  releases:
    main: {layout: flat}
  label_rule: binary255
  tiling: {tile_size: 256, padding: pad}
  split: {default: scenes, policies: {scenes: {method: scenes, ratio: [7, 1, 2]}}}
  leakage: {identical: fail, near: fail, overlap: fail, adjacent: warn}
  blank_share: 0
  grid_tolerance: 0.5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(text)
    return path


def test_published_facts():
    levir, whu, cdd = (catalog_entry(name) for name in ("levir-cd", "whu-cd", "cdd"))
    assert levir.policy("published").expected.tiles == {"train": 7120, "val": 1024, "test": 2048}
    assert whu.policy("random").expected.tiles == {"train": 4572, "val": 762, "test": 2286}
    assert cdd.policy("published").expected.tiles == {"train": 10000, "val": 2998, "test": 3000}
    fragments = cdd.release("fragments").fragments
    assert fragments is not None
    assert fragments.counts == {"train": 10000, "val": 3000, "test": 3000}
    assert (levir.label_rule, whu.label_rule, cdd.label_rule) == (
        "binary255",
        "binary01",
        "only255",
    )
    assert {archive.name: archive.bytes for archive in levir.release("published").archives} == {
        "train.zip": 1721956862,
        "val.zip": 246152048,
        "test.zip": 496305323,
    }


def test_colour_statistics_are_in_rgb_order():
    # The red of these aerial images is brighter than the blue; the released code lists blue first.
    for name in ("levir-cd", "whu-cd"):
        mean = catalog_entry(name).mean
        assert mean is not None
        assert mean[0] > mean[2]


def test_released_checkpoints_were_trained_with_the_statistics_of_the_catalog():
    published = {entry.name: (entry.mean, entry.std) for entry in load_catalog().values()}
    released = {name: (given.mean, given.std) for name, given in DSFER_NET.items()}
    assert {name: published[name] for name in released} == released
    assert set(released) == {name for name, (mean, _) in published.items() if mean}


def test_class_weights_are_inverse_frequencies():
    for entry in load_catalog().values():
        if entry.class_weights:
            assert sum(1 / weight for weight in entry.class_weights) == pytest.approx(1, abs=1e-6)
            train = entry.policy(entry.split.default).expected.changed_fraction["train"]
            assert 1 / entry.class_weights[1] == pytest.approx(train, abs=1e-5)


def test_a_policy_that_cuts_scenes_apart_is_not_stopped_by_the_neighbours_it_makes():
    for entry in load_catalog().values():
        if {"random", "spatial"} & {policy.method for policy in entry.split.policies.values()}:
            assert entry.leakage.adjacent == "warn"


def test_what_was_never_seen_on_the_published_sets_does_not_stop_them():
    for name in ("levir-cd", "whu-cd"):
        leakage = catalog_entry(name).leakage
        assert (leakage.identical, leakage.near) == ("fail", "warn")


def test_own_tiles_that_only_look_alike_do_not_stop():
    for name in OWN_DATA:
        leakage = catalog_entry(name).leakage
        assert (leakage.identical, leakage.near) == ("fail", "warn")


def test_ground_in_two_splits_stops_own_data():
    assert {catalog_entry(name).leakage.overlap for name in OWN_DATA} == {"fail"}


def test_every_archive_can_be_had_and_names_differ():
    for entry in load_catalog().values():
        archives = {a for release in entry.releases.values() for a in release.archives}
        assert len({a.name for a in archives}) == len(archives)
        for archive in archives:
            assert archive.by_hand
            assert all(url.startswith(("http://", "https://")) for url in archive.urls)


def test_own_data_sets_may_have_names():
    assert catalog_entry("folder/harbour_2024-A").name == "folder"
    assert catalog_entry("rasters").name == "rasters"


@pytest.mark.parametrize("name", ["folder/../x", "folder/", "folder/a b", "rasters/a/b"])
def test_names_of_own_data_sets_cannot_lead_elsewhere(name):
    with pytest.raises(ConfigError, match="letters, digits"):
        catalog_entry(name)


@pytest.mark.parametrize("name", ["levir-dc", "LEVIR-CD", "levir-cd/mine"])
def test_unknown_data_set_names_the_nearest_and_the_way_for_own_data(name):
    with pytest.raises(ConfigError) as caught:
        catalog_entry(name)
    assert name in str(caught.value)
    assert "'levir-cd'" in str(caught.value)
    assert "folder/NAME" in str(caught.value)


def test_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigError, match="perhaps you mean 'spatial'"):
        catalog_entry("whu-cd").policy("spacial")


def test_the_form_of_an_entry_that_works(tmp_path):
    assert load_catalog(written(tmp_path, ENTRY))["mine"].title == "t"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tile_size", "tile_sise", "unknown key 'tile_sise'; perhaps you mean 'tile_size'"),
        ("  title: t\n", "", "title: Field required"),
        ("256", "big", "tiling.tile_size"),
        ("256", "-256", "tiling.tile_size"),
        ("layout: flat", "layout: falt", "perhaps you mean 'flat'"),
        ("binary255", "binary25", "perhaps you mean 'binary255'"),
        ("default: scenes", "default: scene", "perhaps you mean 'scenes'"),
        (", ratio: [7, 1, 2]", "", "needs a ratio"),
        ("[7, 1, 2]", "[0, 1, 2]", "positive train part"),
        ("ratio:", "release: other, ratio:", "unknown release 'other'"),
        ("near: fail", "near: maybe", "leakage.near"),
    ],
)
def test_wrong_entries_name_the_key(tmp_path, old, new, message):
    path = written(tmp_path, ENTRY.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_catalog(path)
    assert message in str(caught.value)
    assert f"{path} (mine)" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "just text", "mine: 3"])
def test_files_that_are_no_catalog(tmp_path, text):
    with pytest.raises(ConfigError, match=r"catalog\.yaml"):
        load_catalog(written(tmp_path, text))


def test_missing_catalog(tmp_path):
    with pytest.raises(ConfigError, match="not a readable file"):
        load_catalog(tmp_path / "none.yaml")


def test_suggestion_lists_all_names_when_none_is_near():
    assert did_you_mean("zzz", ["one", "two"]) == " (one of: one, two)"


def test_the_catalog_is_shipped_beside_its_reader():
    assert CATALOG.is_file()
