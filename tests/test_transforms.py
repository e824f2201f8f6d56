import torch

from dsfer.data.transforms import normalise


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
