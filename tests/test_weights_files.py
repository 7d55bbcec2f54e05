"""Which file it is, its converted form, and what `--weights` finds."""

import hashlib
import json
import time

import numpy as np
import pytest
import safetensors.numpy
from serl_files import assert_same, genuine, leaves, release_bytes

from eqxunet import __version__
from eqxunet.errors import InputError, IntegrityError, UnavailableError
from eqxunet.weights import (
    RELEASES,
    SHAPES,
    identify,
    identity,
    read_serl,
    resolve_weights,
    verify,
)
from eqxunet.weights.convert import convert

RELEASE = RELEASES["resnet10"]
TITLE = "SERL's release"
SHA256 = hashlib.sha256(genuine()).hexdigest()


@pytest.fixture
def known(monkeypatch):
    """Lets the fixture file be the known release."""
    release = RELEASE._replace(url="http://localhost/absent", sha256=SHA256)
    monkeypatch.setitem(RELEASES, "resnet10", release)
    return release


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "resnet10_params.pkl"
    path.write_bytes(genuine())
    return path


@pytest.fixture(scope="module")
def converted_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    (folder / "serl.pkl").write_bytes(genuine())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RELEASES, "resnet10", RELEASE._replace(sha256=SHA256))
        assert convert(folder / "serl.pkl", folder / "serl.safetensors") == (SHA256, TITLE)
    return (folder / "serl.safetensors").read_bytes()


@pytest.fixture
def converted(tmp_path, converted_bytes, known):
    path = tmp_path / "resnet10_params.safetensors"
    path.write_bytes(converted_bytes)
    return path


def rewritten(path, change) -> None:
    """Writes a safetensors file anew with changed arrays and metadata."""
    arrays = {name: array.copy() for name, array in read_serl(path).items()}
    with safetensors.safe_open(path, "np") as opened:
        metadata = dict(opened.metadata())
    change(arrays, metadata)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


def test_facts_of_the_release():
    assert len(SHAPES) == 38 and RELEASE.size == 21_677_915
    encoder = [n for n in SHAPES if not n.startswith("output_head/")]
    assert len(encoder) == 36
    assert sum(np.prod(SHAPES[name], dtype=int) for name in encoder) == 4_905_792
    assert RELEASE.sha256.startswith("175745d43d30233e") and RELEASE.url.endswith(
        "/rail-berkeley/serl/releases/download/resnet10/resnet10_params.pkl"
    )


def test_verify_takes_the_release_and_nothing_else(tmp_path, file, known):
    assert verify(file) == identify(file) == (SHA256, TITLE)
    changed = bytearray(genuine())
    changed[-1_000] ^= 1  # a bit of a number: still a good file of the right size
    file.write_bytes(changed)
    read_serl(file)
    sha256 = hashlib.sha256(changed).hexdigest()
    assert identify(file) == (sha256, None)
    with pytest.raises(IntegrityError) as caught:
        verify(file)
    message = str(caught.value)
    assert str(file) in message and sha256 in message and SHA256 in message
    assert len(message.splitlines()) == 2


def test_the_real_release_is_asked_for(file):
    """The fixture has the release's size and format, but other numbers."""
    assert identify(file).release is None
    with pytest.raises(IntegrityError, match=RELEASE.sha256):
        verify(file)


def test_verify_does_not_parse_what_does_not_fit(file, known, monkeypatch):
    def parse(data):
        raise AssertionError("parsed")

    monkeypatch.setattr(identity, "parse", parse)
    monkeypatch.setattr(identity, "read_tree", parse)
    verify(file)
    file.write_bytes(genuine() + b".")
    with pytest.raises(IntegrityError, match="does not hold SERL's release"):
        verify(file)


def test_converted_file_holds_the_same_and_proves_it(converted):
    assert_same(read_serl(converted), leaves())
    assert_same(safetensors.numpy.load_file(converted), leaves())
    with safetensors.safe_open(converted, "np") as opened:
        metadata = opened.metadata()
    assert metadata["source_sha256"] == SHA256
    assert metadata["eqxunet_version"] == __version__
    assert len(json.dumps(metadata)) < 6_000
    file_sha256 = hashlib.sha256(converted.read_bytes()).hexdigest()
    assert verify(converted) == (file_sha256, TITLE)


def flip(arrays, metadata):
    arrays["norm_init/bias"].view(np.uint32)[0] ^= 1


def swap(arrays, metadata):
    one, other = "ResNetBlock_1/MyGroupNorm_0/bias", "ResNetBlock_1/MyGroupNorm_1/bias"
    arrays[one], arrays[other] = arrays[other], arrays[one]


def swap_and_tell(arrays, metadata):
    """The frame then gives the release's bytes from arrays under each other's names."""
    swap(arrays, metadata)
    tokens = metadata["release_pickle"].split(" ")
    one = tokens.index("ResNetBlock_1/MyGroupNorm_0/bias")
    other = tokens.index("ResNetBlock_1/MyGroupNorm_1/bias")
    tokens[one], tokens[other] = tokens[other], tokens[one]
    metadata["release_pickle"] = " ".join(tokens)


def claim(arrays, metadata):
    flip(arrays, metadata)
    del metadata["release_pickle"]


def name_one_array_often(arrays, metadata):
    metadata["release_pickle"] = " ".join(["AAAA", "ResNetBlock_3/Conv_1/kernel"] * 500 + ["AAAA"])


def garble(arrays, metadata):
    metadata["release_pickle"] = "% x"


@pytest.mark.parametrize("change", [flip, swap, swap_and_tell, claim, name_one_array_often, garble])
def test_converted_file_cannot_pretend(converted, change):
    rewritten(converted, change)
    assert read_serl(converted).keys() == SHAPES.keys()
    assert identify(converted).release is None
    with pytest.raises(IntegrityError, match="does not hold SERL's release"):
        verify(converted)


def test_other_weights_convert_as_unverified(tmp_path, file):
    out = tmp_path / "out.safetensors"
    assert convert(file, out) == (SHA256, None)
    assert_same(read_serl(out), leaves())
    assert identify(out).release is None
    with safetensors.safe_open(out, "np") as opened:
        assert opened.metadata() == {"source_sha256": SHA256, "eqxunet_version": __version__}


def test_convert_overwrites_nothing_and_leaves_nothing(tmp_path, file, converted, monkeypatch):
    before = converted.read_bytes()
    file.write_bytes(genuine())
    with pytest.raises(InputError, match="exists"):
        convert(file, converted)
    with pytest.raises(InputError, match="safetensors already"):
        convert(converted, tmp_path / "again.safetensors")
    file.write_bytes(genuine()[:-1])
    with pytest.raises(IntegrityError, match="truncated"):
        convert(file, tmp_path / "again.safetensors")
    with pytest.raises(UnavailableError, match="cannot be written"):
        file.write_bytes(genuine())
        convert(file, tmp_path / "absent" / "again.safetensors")
    monkeypatch.setattr(
        "eqxunet.weights.convert.save", lambda arrays, metadata: before[:-4] + b"\0\0\0\0"
    )
    with pytest.raises(IntegrityError, match="reads back other"):
        convert(file, tmp_path / "again.safetensors")
    assert converted.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([file.name, converted.name])


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda a, m: a.pop("norm_init/bias"), "norm_init/bias is missing"),
        (lambda a, m: a.update(x=a["norm_init/bias"]), "x is unknown"),
        (
            lambda a, m: a.update({"norm_init/bias": a["norm_init/bias"].astype("f8")}),
            r"norm_init/bias is F64\[64\], not <f4\[64\]",
        ),
        (
            lambda a, m: a.update({"norm_init/bias": a["norm_init/bias"][:, None]}),
            r"norm_init/bias is <f4\[64, 1\], not",
        ),
        (lambda a, m: a["norm_init/bias"].fill(np.nan), "NaN or infinity in norm_init/bias"),
    ],
)
def test_safetensors_of_another_tree_are_refused(converted, change, why):
    rewritten(converted, change)
    with pytest.raises(IntegrityError, match=why):
        read_serl(converted)


def test_broken_safetensors_are_refused(converted):
    data = converted.read_bytes()
    for broken in (data[:-1], data + b"\0", data[:100], data[:9], data[:8] + b"{" * 100):
        converted.write_bytes(broken)
        with pytest.raises(IntegrityError, match="broken safetensors"):
            read_serl(converted)
        assert identify(converted).release is None


def test_auto_takes_a_verified_file(tmp_path, file, known):
    assert resolve_weights("auto", tmp_path) == file
    file.write_bytes(release_bytes({"norm_init/bias": np.ones(64, np.float32)}))
    with pytest.raises(IntegrityError, match="does not hold SERL's release"):
        resolve_weights("auto", tmp_path)
    assert resolve_weights(str(file), tmp_path) == file  # named, it is taken unverified


def test_auto_prefers_the_converted_file(tmp_path, file, converted):
    file.write_bytes(b"")
    assert resolve_weights("auto", tmp_path) == converted


def test_auto_downloads_the_release(tmp_path, file, known, monkeypatch):
    monkeypatch.setitem(RELEASES, "resnet10", known._replace(url=file.as_uri()))
    got = resolve_weights("auto", tmp_path / "weights")
    assert got == tmp_path / "weights" / "resnet10_params.pkl"
    assert got.read_bytes() == genuine()


def test_auto_says_how_to_go_on_without_network(tmp_path, known, monkeypatch):
    url = (tmp_path / "absent.pkl").as_uri()
    monkeypatch.setitem(RELEASES, "resnet10", known._replace(url=url))
    with pytest.raises(UnavailableError) as caught:
        resolve_weights("auto", tmp_path / "weights")
    first, second = str(caught.value).splitlines()
    assert first.startswith(url)
    for way in (f"{tmp_path}/weights/resnet10_params.pkl", "--weights FILE", "--weights random"):
        assert way in second


def test_random_is_nothing_and_a_file_must_exist(tmp_path):
    assert resolve_weights("random", tmp_path) is None
    with pytest.raises(InputError, match="absent.pkl: is no file"):
        resolve_weights(tmp_path / "absent.pkl", tmp_path)


def best(count: int, function, *arguments) -> float:
    """Returns the least of several durations in seconds."""
    durations = []
    for _ in range(count):
        start = time.perf_counter()
        function(*arguments)
        durations.append(time.perf_counter() - start)
    return min(durations)


def test_full_size_files_load_fast(tmp_path, file):
    out = tmp_path / "out.safetensors"
    convert(file, out)
    pickled, converted = best(5, read_serl, file), best(5, read_serl, out)
    print(f"pickle {pickled:.3f} s, safetensors {converted:.3f} s")
    assert pickled < 0.2 and converted < 0.05
