import pytest

from pipeline.published import load_published

PAPER = load_published()
TABLE_1 = [
    pytest.param(scores, id=f"{method}-{dataset}")
    for method, row in PAPER.comparison.items()
    for dataset, scores in row.items()
]
# Test splits have one changed fraction, whatever the method; in percent, with room for rounding.
CHANGED = {"levir-cd": (5.08, 5.13), "whu-cd": (3.66, 3.72), "cdd": (11.77, 11.83)}
HALF_UNIT = 0.005 + 1e-9


def test_every_table_is_whole():
    assert len(TABLE_1) == 9 * 3
    assert set(PAPER.comparison) == set(PAPER.cost) == set(PAPER.titles)
    assert len(PAPER.ablation) == 4 and len(PAPER.encoders) == 3
    assert [row.lambda_ for row in PAPER.sensitivity] == [0.001, 0.01, 0.1, 1, 10, 100]
    assert all(len(row) == 3 for row in (*PAPER.comparison.values(), *PAPER.ablation.values()))


def f1_and_iou(precision, recall):
    f1 = 2 * precision * recall / (precision + recall)
    return f1, 100 * f1 / (200 - f1)


@pytest.mark.parametrize("scores", TABLE_1)
def test_f1_and_iou_follow_from_precision_and_recall(scores):
    corners = [
        f1_and_iou(scores.P + dp, scores.R + dr)
        for dp in (-HALF_UNIT, HALF_UNIT)
        for dr in (-HALF_UNIT, HALF_UNIT)
    ]
    for printed, exact in zip((scores.F1, scores.IoU), zip(*corners, strict=True), strict=True):
        assert min(exact) - HALF_UNIT <= printed <= max(exact) + HALF_UNIT


@pytest.mark.parametrize("dataset", CHANGED)
def test_oa_implies_the_same_changed_fraction_for_every_method(dataset):
    low, high = CHANGED[dataset]
    for method, row in PAPER.comparison.items():
        if method == "dsamnet":  # its rows imply another test split than everybody else's
            continue
        precision, recall = row[dataset].P / 100, row[dataset].R / 100
        errors_per_change = (1 - recall) + recall * (1 - precision) / precision
        assert low < (100 - row[dataset].OA) / errors_per_change < high, method


def test_tables_agree_where_they_repeat_each_other():
    table_1 = PAPER.comparison["dsfer-net"]
    assert PAPER.ablation["base+cf+dsfr"] == {name: row.F1 for name, row in table_1.items()}
    vgg = PAPER.encoders["vgg16"]
    assert (vgg.F1, vgg.OA) == (table_1["levir-cd"].F1, table_1["levir-cd"].OA)
    assert (vgg.parameters, vgg.seconds) == (
        PAPER.cost["dsfer-net"].parameters,
        PAPER.cost["dsfer-net"].seconds,
    )
    by_lambda = {row.lambda_: row for row in PAPER.sensitivity}
    chosen = {
        "levir-cd": by_lambda[0.1].levir_cd,
        "whu-cd": by_lambda[0.01].whu_cd,
        "cdd": by_lambda[1].cdd,
    }
    for name, pair in chosen.items():
        assert (pair.F1, pair.OA) == (table_1[name].F1, table_1[name].OA)


def test_reference_finds_the_table_that_a_run_belongs_beside():
    full = PAPER.reference("dsfer-net", "cdd", "base+cf+dsfr")
    assert full.table == "Table I" and full.scores["IoU"] == 90.79
    assert PAPER.reference("bit", "levir-cd", None).scores["F1"] == 88.19
    ablated = PAPER.reference("dsfer-net", "whu-cd", "base+cf")
    assert ablated.table == "Table III" and ablated.scores == {"F1": 91.88}
    assert PAPER.reference("dsfer-net", "demo", "base+cf+dsfr") is None
    assert PAPER.reference("dsfer-net", "folder/mine", "base+cf") is None


def test_costs_are_of_the_variant_that_the_paper_counts():
    assert PAPER.cost_of("changeformer", "v5", None).parameters == 43.99
    assert PAPER.cost_of("frnet", None, None).parameters == 15.00
    assert PAPER.cost_of("dsfer-net", "base+cf+dsfr", "resnet18").parameters == 22.90
    for model, variant, encoder in [
        ("changeformer", "v6", None), ("stanet", "bam", None), ("bit", "dd8", None),
        ("dsfer-net", "base+cf", "vgg16"), ("dsfer-net", "base+cf", "resnet18"),
        ("small-net", None, None),
    ]:  # fmt: skip
        assert PAPER.cost_of(model, variant, encoder) is None
