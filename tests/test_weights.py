"""Weights of released Dsfer-Net checkpoints: the band order; files that are read with suspicion."""

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from dsfer.cli import app, main
from dsfer.errors import CheckpointError
from dsfer.released import RELEASES, import_released
from dsfer.weights import (
    Metadata,
    load_weights,
    read_metadata,
    read_state_dict,
    save_weights,
)
from tests.disks import mounted
from tests.released_states import released_states


@pytest.fixture(scope="module")
def released():
    return released_states(RELEASES["dsfer-net"][0])


@pytest.fixture(scope="module")
def source(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "model.pth"
    torch.save(released, path)
    return path


def test_the_imported_network_sees_rgb_as_the_released_one_saw_bgr(released, source):
    model, _ = import_released("dsfer-net", [source], "levir-cd")
    first = released["base.feats.0.weight"]
    assert torch.equal(model.encoder.features[0].weight, first[:, [2, 1, 0]])
    rgb = torch.randn(1, 3, 64, 64)
    theirs = torch.nn.functional.conv2d(
        rgb.flip(1), first, released["base.feats.0.bias"], padding=1
    )
    torch.testing.assert_close(model.encoder.features[0](rgb), theirs, rtol=1e-5, atol=1e-5)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"a": Payload()}, tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"not a readable state dict .*\(it holds 'print'"
    ) as e:
        read_state_dict(tmp_path / "model.pth")
    assert str(e.value).isprintable()
    assert "code ran" not in capsys.readouterr().out


def test_what_a_file_names_does_not_reach_the_terminal_raw(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": Payload()}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"print", b"p\x1b[1m"))
    with pytest.raises(CheckpointError, match=r"holds '.*p\\x1b\[1m', which is no plain value"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_state_dict(path)


def test_a_flipped_bit_in_our_weights_is_noticed(tmp_path):
    network, path = torch.nn.Linear(100, 100), tmp_path / "w.safetensors"
    save_weights(network, path, Metadata("dsfer-net", {}, (0, 0, 0), (1, 1, 1)))
    load_weights(torch.nn.Linear(100, 100), path, model_name="dsfer-net")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: has SHA-256 .*, its record"):
        load_weights(torch.nn.Linear(100, 100), path, model_name="dsfer-net")


def test_an_import_onto_a_full_disk(source, tmp_path, monkeypatch, capsys):
    with mounted(tmp_path / "disk", 160) as disk:
        out = disk.folder / "ours.safetensors"
        out.write_text("former")
        arguments = ["import-weights", str(source), "--model", "dsfer-net", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["dsfer", *arguments])
        disk.fill(room=50_000_000)
        with pytest.raises(SystemExit, match="1"):
            main()
        assert capsys.readouterr().err.startswith(
            f"error: {out}: no space left on device. To mend it: make room on that disk"
        )
        assert out.read_text() == "former"
        disk.clear()
        assert [path.name for path in disk.folder.iterdir()] == [out.name]
        with pytest.raises(SystemExit, match="0"):
            main()
        assert read_metadata(out).mean == (101.4625, 100.0701, 85.4457)


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


def test_the_command_imports_other_methods_and_lists_what_there_is(tmp_path):
    source, out = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save(released_states(RELEASES["fc-ef-res"][0]), source)
    arguments = ["import-weights", str(source), "--model", "fc-ef-res", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1,103,874 parameters" in done.output and "each image by itself" in done.output
    metadata = read_metadata(out, model="fc-ef-res")
    assert metadata.per_image
    assert "dataset" not in metadata.about
    listed = CliRunner().invoke(app, ["models"]).output
    assert "1,545,986" in listed and "16,929,152" in listed
