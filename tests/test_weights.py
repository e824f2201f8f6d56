"""Import of released Dsfer-Net checkpoints: every entry, the band order, and what is refused."""

import subprocess
import sys

import pytest
import torch

import dsfer
from dsfer.errors import CheckpointError
from dsfer.weights import import_dsfer_net, read_metadata, read_state_dict, released_entries


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    return {
        entry.name: (torch.randn(entry.shape) * 0.02 if entry.shape else torch.tensor(0))
        for entry in released_entries()
    }


@pytest.fixture(scope="module")
def source(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "model.pth"
    torch.save(released, path)
    return path


def test_the_table_covers_our_network_exactly():
    model = dsfer.create_model("dsfer-net")
    ours = {entry.ours: entry.shape for entry in released_entries()}
    assert ours == {key: value.shape for key, value in model.state_dict().items()}
    assert len(released_entries()) == 112


def test_every_value_arrives_and_the_bands_are_reversed(released, source):
    model = dsfer.create_model("dsfer-net")
    import_dsfer_net(source, model)
    states = model.state_dict()
    for entry in released_entries():
        expected = released[entry.name]
        if entry.name == "base.feats.0.weight":
            expected = expected[:, [2, 1, 0]]
        assert torch.equal(states[entry.ours], expected), entry.name


def test_the_imported_network_sees_rgb_as_the_released_one_saw_bgr(released, source):
    model = dsfer.create_model("dsfer-net").eval()
    import_dsfer_net(source, model)
    rgb = torch.randn(1, 3, 64, 64)
    theirs = torch.nn.functional.conv2d(
        rgb.flip(1), released["base.feats.0.weight"], released["base.feats.0.bias"], padding=1
    )
    torch.testing.assert_close(model.encoder.features[0](rgb), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_what_does_not_fit_is_refused(released, tmp_path, change):
    states = dict(released)
    if change == "missing":
        del states["outc.conv.bias"]
    elif change == "extra":
        states["gamma"] = torch.zeros(1)
    else:
        states["hopf4.linear_q.linear_qkv.weight"] = torch.zeros(256, 512)
    torch.save(states, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"outc\.conv\.bias|gamma|hopf4"):
        import_dsfer_net(tmp_path / "model.pth", dsfer.create_model("dsfer-net"))


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"a": Payload()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="not a readable state dict"):
        read_state_dict(tmp_path / "model.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_state_dict(path)


def dsfer_command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from dsfer.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_imports_and_its_errors_have_no_traceback(source, tmp_path):
    out = tmp_path / "ours.safetensors"
    arguments = ("--model", "dsfer-net", "--out", out, "--dataset", "levir-cd")
    done = dsfer_command("import-weights", source, *arguments)
    assert done.returncode == 0, done.stderr
    assert "34,085,990 parameters" in done.stdout
    assert read_metadata(out).mean == (101.4625, 100.0701, 85.4457)

    failed = dsfer_command("import-weights", tmp_path / "none.pth", *arguments)
    assert failed.returncode == 1
    assert "none.pth" in failed.stderr and "Traceback" not in failed.stderr
