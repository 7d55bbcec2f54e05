"""Encoders with ImageNet weights: as PyTorch's compute, each leaf in place, frozen if they are."""

import hashlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
import torch_files

from eqxunet.config import ModelConfig, TrainConfig
from eqxunet.data.batches import Batch
from eqxunet.errors import InputError, IntegrityError
from eqxunet.models import build, fold, load_weights
from eqxunet.models.layers import BatchNorm, max_pool
from eqxunet.models.leaves import named_leaves, named_state
from eqxunet.tasks import Binary
from eqxunet.training import initialise
from eqxunet.training.step import train_step
from eqxunet.weights import identify, read_state_dict, resolve_weights

DATA = Path(__file__).parent / "data"
PYRAMIDS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "efficientnet_lite0": (16, 24, 40, 112, 320),
}
# As torchvision says, and for EfficientNet-Lite0 its authors; with and without the classifier.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "efficientnet_lite0": 4_652_008 - 1_281_000 - 1280 * 320 - 2 * 1280,
}


def shapes(encoder: str):
    return eqx.filter_eval_shape(build, ModelConfig(encoder=encoder), key=jax.random.key(0))


def filled(encoder: str):
    """A U-Net of quick random numbers: its own take seconds to compile."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree.map(fill, shapes(encoder))


def state_dict(encoder: str) -> dict[str, np.ndarray]:
    """A full state dict by PyTorch's names, spelled out apart from the package's."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, c: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (c,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, norm_name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        norm(norm_name, shape[0])

    if encoder == "efficientnet_lite0":
        conv("_conv_stem", "_bn0", 32, 3, 3, 3)
        rows = "1 3 16 1, 2 3 24 6, 2 5 40 6, 3 3 80 6, 3 5 112 6, 4 5 192 6, 1 3 320 6"
        c_in, i = 32, 0
        for row in rows.split(", "):
            blocks, k, c_out, expansion = map(int, row.split())
            for _ in range(blocks):
                block, width = f"_blocks.{i}", c_in * expansion
                if expansion > 1:
                    conv(f"{block}._expand_conv", f"{block}._bn0", width, c_in, 1, 1)
                conv(f"{block}._depthwise_conv", f"{block}._bn1", width, 1, k, k)
                conv(f"{block}._project_conv", f"{block}._bn2", c_out, width, 1, 1)
                c_in, i = c_out, i + 1
        conv("_conv_head", "_bn1", 1280, 320, 1, 1)
        shapes |= {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    else:
        deep = encoder == "resnet50"
        conv("conv1", "bn1", 64, 3, 7, 7)
        c_in = 64
        for i, blocks in enumerate((2, 2, 2, 2) if encoder == "resnet18" else (3, 4, 6, 3)):
            width = 64 * 2**i
            for j in range(blocks):
                block, c_out = f"layer{i + 1}.{j}", width * 4 if deep else width
                sizes = [(width, c_in, 1), (width, width, 3), (c_out, width, 1)]
                sizes = sizes if deep else [(width, c_in, 3), (width, width, 3)]
                for n, (out, into, k) in enumerate(sizes, 1):
                    conv(f"{block}.conv{n}", f"{block}.bn{n}", out, into, k, k)
                if j == 0 and (i > 0 or deep):
                    conv(f"{block}.downsample.0", f"{block}.downsample.1", c_out, c_in, 1, 1)
                c_in = c_out
        shapes |= {"fc.weight": (1000, c_in), "fc.bias": (1000,)}
    return {name: torch_files.torch_variable(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=PYRAMIDS)
def loaded(request, tmp_path_factory):
    """Name, state dict, and the U-Net and state that it was loaded into, in inference mode."""
    arrays = state_dict(request.param)
    path = tmp_path_factory.mktemp("weights") / "file.pth"
    path.write_bytes(torch_files.saved(arrays))
    model, state = load_weights(*filled(request.param), path)
    return request.param, arrays, eqx.nn.inference_mode(model), state


def test_references_are_those_of_the_provenance():
    about = json.loads((DATA / "encoders.provenance.json").read_text())
    for name, sha256 in about["sha256"].items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("size", torch_files.SIZES)
def test_maps_equal_those_of_pytorch(loaded, size):
    encoder, _, model, state = loaded
    stored = np.load(DATA / "encoders.npz")
    image = jnp.asarray(torch_files.image(*size))
    maps, _ = eqx.filter_jit(model.encoder)(image, state)
    assert len(maps) == len(PYRAMIDS[encoder])
    for i, ours in enumerate(maps):
        at = f"{encoder}/{size[0]}x{size[1]}/{i}"
        assert ours.shape == tuple(stored[f"{at}/shape"])
        got, want, scale = torch_files.sample(ours), stored[f"{at}/samples"], stored[f"{at}/scale"]
        parity.assert_close(got, want, 1e-4, at, scale=float(scale))
        assert np.std(want) > 0.1 * np.max(np.abs(want)) > 0  # a dead one agrees with anything


def test_each_array_of_the_file_is_in_its_place(loaded):
    _, arrays, model, state = loaded
    given = [a for a in arrays.values() if a.dtype == np.float32]
    left_out = ("fc.", "_fc.", "_conv_head.", "_bn1.")
    used = {n: a for n, a in arrays.items() if not n.startswith(left_out) and a.dtype == "f4"}
    ours = named_leaves(model.encoder) | named_state(model.encoder, state)
    bits = {np.asarray(leaf).transpose(3, 2, 0, 1).tobytes() if leaf.ndim == 4
            else np.asarray(leaf).tobytes() for leaf in ours.values()}  # fmt: skip
    assert len(ours) == len(used) == len(bits) < len(given)
    assert bits == {array.tobytes() for array in used.values()}


def test_sizes_and_pyramids():
    for encoder, channels in PYRAMIDS.items():
        model, _ = shapes(encoder)
        assert model.encoder.channels == channels and model.encoder.strides == (2, 4, 8, 16, 32)
        assert (
            sum(leaf.size for leaf in named_leaves(model.encoder).values()) == (PARAMETERS[encoder])
        )
        assert sum(leaf.size for leaf in named_leaves(model.decoder).values()) < 10_000_000


def test_decoders_channels():
    def channels(encoder):
        return [up.block.conv2.kernel.shape[3] for up in shapes(encoder)[0].decoder.up]

    assert channels("resnet10") == channels("resnet18") == [256, 128, 64, 32, 16]
    assert channels("resnet50") == [256, 128, 64, 32, 16]
    assert channels("efficientnet_lite0") == [160, 80, 48, 32, 16]
    assert channels("scratch") == [128, 64, 32]


def test_folded_equals_inference_mode(loaded):
    _, _, model, state = loaded
    image = jnp.asarray(torch_files.image(64, 64))
    folded, _ = eqx.filter_jit(fold(model.encoder, state))(image, state)
    is_norm = lambda node: isinstance(node, BatchNorm)  # noqa: E731
    assert not any(map(is_norm, jax.tree.leaves(fold(model.encoder, state), is_leaf=is_norm)))
    for ours, want in zip(folded, eqx.filter_jit(model.encoder)(image, state)[0], strict=True):
        parity.assert_close(ours, want, 1e-5)


@pytest.mark.parametrize("freeze", [True, None])
@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet_lite0"])
def test_what_is_frozen_is_bit_identical_after_steps(tmp_path, encoder, freeze):
    """Statistics and leaves, or, by default, statistics alone."""
    (tmp_path / "file.pth").write_bytes(torch_files.saved(state_dict(encoder)))
    model, state = load_weights(*filled(encoder), tmp_path / "file.pth")

    def encoders(model, state):
        leaves = named_leaves(model.encoder) | named_state(model.encoder, state)
        return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}

    before = encoders(model, state)
    trainer, train_state = initialise(
        model,
        state,
        TrainConfig(batch_size=2, freeze_encoder=freeze),
        Binary("mask"),
        total_steps=3,
    )
    rng = np.random.default_rng(0)
    batch = Batch(
        rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(0, 2, (2, 32, 32), np.uint8)
    )
    head = np.asarray(model.head.kernel)
    statistics = named_state(model, state)["decoder.up.0.block.norm1.running.mean"]
    statistics = np.asarray(statistics)
    for _ in range(3):
        train_state, metrics = train_step((trainer, batch), train_state)
    assert metrics.skipped == 0
    trained = trainer.model(train_state)
    after = encoders(trained, train_state.state)
    moved = {name for name in before if after[name] != before[name]}
    leaves = {name for name in before if ".running." not in name}
    assert moved == (set() if freeze else leaves)
    assert (np.asarray(trained.head.kernel) != head).any()
    moved = named_state(trained, train_state.state)["decoder.up.0.block.norm1.running.mean"]
    assert (np.asarray(moved) != statistics).any()


def test_safetensors_and_half_precision_load_the_same(tmp_path):
    arrays = state_dict("efficientnet_lite0")
    (tmp_path / "a").write_bytes(safetensors.numpy.save(arrays))
    (tmp_path / "b").write_bytes(torch_files.saved(arrays, is_legacy=True))
    both = [load_weights(*filled("efficientnet_lite0"), tmp_path / name) for name in "ab"]
    assert eqx.tree_equal(*both)
    halves = {n: a.astype("f2") if a.dtype == "f4" else a for n, a in arrays.items()}
    (tmp_path / "c").write_bytes(torch_files.saved(halves))
    model, _ = load_weights(*filled("efficientnet_lite0"), tmp_path / "c")
    got = model.encoder.stem.conv.kernel
    assert (
        np.array_equal(got, halves["_conv_stem.weight"].transpose(2, 3, 1, 0)) and got.dtype == "f4"
    )


def test_files_that_do_not_fit_are_refused_with_all_differences(tmp_path):
    arrays = state_dict("resnet18")
    arrays["layer2.0.conv1.weight"] = arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0).copy()
    del arrays["layer4.1.bn2.running_var"], arrays["bn1.weight"]
    arrays["layer1.0.se.weight"] = np.zeros(1, np.float32)
    path = tmp_path / "file.pth"
    path.write_bytes(torch_files.saved(arrays))
    with pytest.raises(IntegrityError) as caught:
        load_weights(*filled("resnet18"), path)
    message = str(caught.value)
    for difference in (
        "layer1.0.se.weight is unknown",
        "layer4.1.bn2.running_var is missing",
        "bn1.weight is missing",
        "layer2.0.conv1.weight is float32[3, 3, 64, 128], not float32[128, 64, 3, 3]",
    ):
        assert difference in message
    assert message.count(";") == 3 and len(message.splitlines()) == 2
    with pytest.raises(IntegrityError, match=r"ResNetEncoder: .*; and \d+ more"):
        path.write_bytes(torch_files.saved(state_dict("efficientnet_lite0")))
        load_weights(*filled("resnet18"), path)
    with pytest.raises(InputError, match="no weights for a PlainEncoder"):
        load_weights(*filled("scratch"), path)


def test_classifier_and_counts_may_be_missing(tmp_path):
    arrays = state_dict("resnet18")
    few = {n: a for n, a in arrays.items() if not n.startswith("fc.") and a.dtype == np.float32}
    (tmp_path / "few").write_bytes(torch_files.saved(few))
    (tmp_path / "all").write_bytes(torch_files.saved(arrays))
    both = [load_weights(*filled("resnet18"), tmp_path / name) for name in ("few", "all")]
    assert eqx.tree_equal(*both)


@pytest.mark.parametrize("h, w", [(8, 8), (7, 10), (1, 1), (5, 2)])
def test_max_pool_with_padding_on_all_sides(h, w):
    x = jax.random.normal(jax.random.key(0), (h, w, 3)) - 5  # padding with 0 would win
    padded = np.pad(np.asarray(x), ((1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::2, ::2]
    want = windows.max((3, 4))[: -(-h // 2), : -(-w // 2)]
    assert np.array_equal(max_pool(x, 3, ((1, 1), (1, 1))), want)


def test_the_genuine_weights_of_lite0_come_with_their_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = resolve_weights(encoder="efficientnet_lite0")
    assert path is not None and identify(path).release is not None
    arrays = read_state_dict(path)
    model, state = load_weights(*filled("efficientnet_lite0"), path)
    np.testing.assert_array_equal(
        np.asarray(model.encoder.stem.conv.kernel),
        arrays["_conv_stem.weight"].transpose(2, 3, 1, 0),
    )
    statistics = named_state(model, state)["encoder.stages.6.0.project.norm.running.var"]
    np.testing.assert_array_equal(statistics, arrays["_blocks.15._bn2.running_var"])
