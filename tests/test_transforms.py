import torch

from dsfer.data.transforms import apply_symmetries, draw_symmetries, normalise


def test_normalise_matches_the_formula_and_stays_channels_last():
    pairs = torch.randint(0, 256, (2, 2, 4, 6, 3), dtype=torch.uint8)
    mean, std = torch.tensor([10.0, 20, 30]), torch.tensor([2.0, 4, 8])
    t1, t2 = normalise(pairs, mean, std)
    assert t1.shape == (2, 3, 4, 6)
    assert torch.cat((t1, t2)).is_contiguous(memory_format=torch.channels_last)
    assert float(t2[1, 2, 3, 5]) == (float(pairs[1, 1, 3, 5, 2]) - 30) / 8


def test_images_are_standardised_each_by_itself():
    pairs = torch.randint(0, 256, (2, 2, 8, 6, 3), dtype=torch.uint8)
    pairs[0, 1] = 77  # a flat image has no deviation to divide by
    t1, t2 = normalise(pairs, torch.zeros(3), torch.ones(3), per_image=True)
    for found, image in ((t1[0], pairs[0, 0]), (t1[1], pairs[1, 0]), (t2[1], pairs[1, 1])):
        values = image.double().numpy()
        expected = torch.from_numpy((values - values.mean()) / values.std()).permute(2, 0, 1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(t2[0], torch.zeros(3, 8, 6))


def test_all_eight_symmetries_act_on_both_dates_and_the_label_alike():
    labels = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4).repeat(8, 1, 1)
    pairs = labels[:, None, :, :, None].repeat(1, 2, 1, 1, 3)
    bits = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]).bool()
    turned, turned_labels = apply_symmetries(pairs, labels, bits)
    assert torch.equal(turned, turned_labels[:, None, :, :, None].expand_as(turned))
    assert len({tuple(image.flatten().tolist()) for image in turned_labels}) == 8


def test_draws_depend_on_seed_and_step_only():
    again = draw_symmetries(64, seed=3, step=5)
    assert torch.equal(draw_symmetries(64, seed=3, step=5), again)
    assert not torch.equal(draw_symmetries(64, seed=3, step=6), again)
    assert not torch.equal(draw_symmetries(64, seed=4, step=5), again)
    assert 0.3 < float(draw_symmetries(1000, seed=0, step=0).float().mean()) < 0.7


def test_draws_of_neighbouring_steps_share_nothing():
    first, second = (draw_symmetries(64, seed=3, step=step) for step in (5, 6))
    for shift in range(64):
        assert not torch.equal(first[shift:], second[: 64 - shift]) or shift > 60
