"""SERL's weights in the Equinox encoder: every leaf in its place, every port bug caught."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import assert_close
from serl_files import (
    TRUNCATED,
    dumps,
    genuine,
    jax_array,
    leaves,
    nest,
    release_bytes,
    whole_leaves,
)

from eqxunet.config import ModelConfig
from eqxunet.errors import InputError, IntegrityError
from eqxunet.models import ResNet10, build
from eqxunet.models.leaves import named_leaves
from eqxunet.models.pretrained import PATHS, load_resnet10
from eqxunet.weights import SHAPES
from eqxunet.weights.convert import convert

SAME, SYMMETRIC = "same", "symmetric"


# The encoder as SERL defines it, in NumPy and float64, by SERL's names. It shares no code with the
# package, so that a wrong name, transpose, padding or normalisation on either side shows.


def windows(x, size: int, stride: int, padding: str, fill: float = 0.0):
    pads = []
    for n in x.shape[:2]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append(
            (size // 2, size // 2) if padding == SYMMETRIC else (total // 2, -(-total // 2))
        )
    x = np.pad(x, (*pads, (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def conv(x, kernel, stride: int = 1, padding: str = SAME):
    x = windows(x, len(kernel), stride, padding)
    return np.tensordot(x, kernel.astype(np.float64), ([2, 3, 4], [2, 0, 1]))


def norm(x, weights, name: str):
    groups = x.reshape(*x.shape[:2], 4, -1)
    mean = groups.mean((0, 1, 3), keepdims=True)
    var = (groups**2).mean((0, 1, 3), keepdims=True) - mean**2
    x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return x * weights[f"{name}/scale"] + weights[f"{name}/bias"]


def block(x, weights, i: int, padding: str = SAME):
    name, stride = f"ResNetBlock_{i}", 2 if i > 0 else 1
    y = conv(x, weights[f"{name}/Conv_0/kernel"], stride, padding)
    y = np.maximum(norm(y, weights, f"{name}/MyGroupNorm_0"), 0)
    y = norm(conv(y, weights[f"{name}/Conv_1/kernel"]), weights, f"{name}/MyGroupNorm_1")
    if i > 0:
        x = norm(conv(x, weights[f"{name}/conv_proj/kernel"], stride), weights, f"{name}/norm_proj")
    return np.maximum(x + y, 0)


def encoder(image, weights):
    x = (np.asarray(image, np.float64) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    x = conv(x, weights["conv_init/kernel"], 2, SYMMETRIC)  # the stem, and nothing else
    x = np.maximum(norm(x, weights, "norm_init"), 0)
    x = windows(x, 3, 2, SAME, fill=-np.inf).max((3, 4))
    stages = []
    for i in range(4):
        x = block(x, weights, i)
        stages.append(x)
    return stages


def image(height: int, width: int):
    return np.random.default_rng(height).random((height, width, 3), np.float32)


def filled(make, seed: int = 0):
    """Returns what `make` builds with quick random numbers: its own take seconds to compile."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.dtype != jnp.float32:
            return leaf
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(fill, eqx.filter_eval_shape(make))


def resnet(stage_sizes=(1, 1, 1, 1)):
    return ResNet10(stage_sizes, key=jax.random.key(0))


def unet(**config):
    return build(ModelConfig(**config), key=jax.random.key(0))[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet10_params.pkl"
    path.write_bytes(genuine())
    return path


@pytest.fixture(scope="module")
def random_encoder():
    return filled(resnet)


@pytest.fixture(scope="module")
def loaded(file, random_encoder):
    return load_resnet10(random_encoder, file)


@pytest.mark.parametrize("size", [(128, 128), (97, 130), (224, 224)])
def test_stages_equal_the_reference(loaded, size):
    given = image(*size)
    got = eqx.filter_jit(loaded)(jnp.asarray(given))
    want = encoder(given, leaves())
    for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(ours, theirs, 1e-4, f"stage {i + 1}")
        assert np.std(theirs) > 0.1  # a dead network would agree with anything


@pytest.mark.reference
@pytest.mark.parametrize("size", [(128, 128), (97, 130), (224, 224)])
def test_stages_equal_flax(loaded, size):
    flax_models = pytest.importorskip("flax_models", reason="needs the extra `reference`")
    given = jnp.asarray(image(*size))
    params = nest({name: leaves()[name] for name in PATHS})
    want = flax_models.ResNetEncoder().apply({"params": params}, given[None])
    for i, (ours, theirs) in enumerate(zip(eqx.filter_jit(loaded)(given), want, strict=True)):
        assert_close(ours, theirs[0], 1e-4, f"stage {i + 1}")


def test_stage_shapes(loaded):
    shapes = [s.shape for s in jax.eval_shape(loaded, jnp.zeros((128, 128, 3)))]
    assert shapes == [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]


# What SERL's weights of blocks 0 and 1 give for x[h,w,c] = sin(0.1 h + 0.2 w + 0.3 c) at 32x32x64:
# mean, deviation, largest, first four at [0, 0], first four at the centre, sum of absolutes.
BLOCK_0 = (0.703361, 1.638935, 16.267319, [0, 1.72363, 0, 0], [0, 0, 0.28789, 0], 46095.4476)
BLOCK_1 = (
    *(0.838482, 1.756969, 18.596705),
    *([0.04204, 4.52423, 0, 1.57584], [0, 0.41993, 1.13325, 2.48595], 27475.3774),
)
BLOCK_1_SYMMETRIC = (
    *(0.812587, 1.705496, 14.953971),
    *([0, 0, 0, 2.76992], [0, 1.52732, 0.46725, 2.40245], 26626.8393),
)


def assert_numbers(x, want, tolerance: float) -> None:
    centre = x[x.shape[0] // 2, x.shape[1] // 2, :4]
    got = (x.mean(), x.std(), x.max(), x[0, 0, :4], centre, np.abs(x).sum())
    scales = (1, 1, want[2], want[2], want[2], want[5])
    for number, wanted, scale in zip(got, want, scales, strict=True):
        assert np.max(np.abs(number - np.asarray(wanted))) <= tolerance * scale, (number, wanted)


@pytest.mark.skipif(
    not TRUNCATED.exists(), reason="the genuine, truncated release is not beside the checkout"
)
def test_genuine_blocks_give_known_numbers(tmp_path, random_encoder):
    blocks = whole_leaves(TRUNCATED.read_bytes())
    h, w, c = np.ogrid[:32, :32, :64]
    x = np.sin(0.1 * h + 0.2 * w + 0.3 * c)
    y = block(x, blocks, 0)
    assert_numbers(y, BLOCK_0, 1e-6)
    assert_numbers(block(y, blocks, 1), BLOCK_1, 1e-6)
    assert_numbers(block(y, blocks, 1, SYMMETRIC), BLOCK_1_SYMMETRIC, 1e-6)

    (tmp_path / "serl.pkl").write_bytes(release_bytes(blocks))
    stages = load_resnet10(random_encoder, tmp_path / "serl.pkl").stages
    ours = np.asarray(stages[0][0](jnp.asarray(x, jnp.float32)), np.float64)
    assert_numbers(ours, BLOCK_0, 1e-5)
    assert_close(ours, y, 1e-5, "block 0")
    ours = np.asarray(stages[1][0](jnp.asarray(y, jnp.float32)), np.float64)
    assert_numbers(ours, BLOCK_1, 1e-5)
    assert_close(ours, block(y, blocks, 1), 1e-5, "block 1")


def test_each_leaf_is_in_its_place(loaded, random_encoder):
    assert set(PATHS) == {name for name in SHAPES if not name.startswith("output_head/")}
    ours, before = named_leaves(loaded), named_leaves(random_encoder)
    assert len(ours) == len(PATHS) == 36
    for theirs, path in PATHS.items():
        assert np.asarray(ours[path]).tobytes() == leaves()[theirs].tobytes(), path
        assert ours[path].dtype == jnp.float32
        assert not np.array_equal(ours[path], before[path]), path
    # Spelled out once by hand, for a table that is consistently wrong.
    third = loaded.stages[2][0]
    assert np.array_equal(third.conv1.kernel, leaves()["ResNetBlock_2/Conv_0/kernel"])
    assert np.array_equal(third.norm2.scale, leaves()["ResNetBlock_2/MyGroupNorm_1/scale"])
    assert np.array_equal(third.norm_proj.bias, leaves()["ResNetBlock_2/norm_proj/bias"])


def test_block_0_has_no_projection(loaded):
    projections = [stage[0].conv_proj is not None for stage in loaded.stages]
    assert projections == [stage[0].norm_proj is not None for stage in loaded.stages]
    assert projections == [False, True, True, True]


def test_leaves_go_by_name_not_by_order(tmp_path, loaded):
    def reverse(tree):
        if not isinstance(tree, dict):
            return tree
        return {name: reverse(tree[name]) for name in reversed(tree)}

    given = {name: jax_array(leaf.shape, leaf.tobytes()) for name, leaf in leaves().items()}
    (tmp_path / "serl.pkl").write_bytes(dumps(reverse(nest(given))))
    other = load_resnet10(filled(resnet, 1), tmp_path / "serl.pkl")
    assert eqx.tree_equal(loaded, other)


def test_converted_file_gives_the_same(tmp_path, file, loaded, random_encoder):
    convert(file, tmp_path / "serl.safetensors")
    assert eqx.tree_equal(loaded, load_resnet10(random_encoder, tmp_path / "serl.safetensors"))


def test_in_a_unet_only_the_encoder_changes(file, loaded):
    model = filled(lambda: unet(encoder="resnet10"))
    got = load_resnet10(model, file)
    assert eqx.tree_equal(got.encoder.resnet, loaded)
    old, new = named_leaves(model), named_leaves(got)
    assert old.keys() == new.keys()
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == {f"encoder.resnet.{path}" for path in PATHS.values()}
    assert jax.tree.structure(model) == jax.tree.structure(got)


@pytest.mark.parametrize("name", ["ResNetBlock_3/norm_proj/bias", "norm_init/scale"])
def test_no_leaf_stays_random(tmp_path, random_encoder, name):
    given = {n: jax_array(leaf.shape, leaf.tobytes()) for n, leaf in leaves().items() if n != name}
    (tmp_path / "serl.pkl").write_bytes(dumps(nest(given)))
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        load_resnet10(random_encoder, tmp_path / "serl.pkl")


def test_kernels_in_another_order_are_refused(tmp_path, random_encoder):
    kernel = leaves()["ResNetBlock_0/Conv_0/kernel"].transpose(3, 2, 0, 1)
    given = leaves() | {"ResNetBlock_0/Conv_0/kernel": np.ascontiguousarray(kernel)}
    (tmp_path / "serl.pkl").write_bytes(dumps(nest(given), 4))
    with pytest.raises(IntegrityError, match=r"Conv_0/kernel is <f4\[64, 64, 3, 3\], not"):
        load_resnet10(random_encoder, tmp_path / "serl.pkl")


def test_other_models_are_refused(file):
    deeper = filled(lambda: resnet((2, 2, 2, 2)))
    with pytest.raises(InputError, match=r"stage sizes \(1, 1, 1, 1\), not \(2, 2, 2, 2\)"):
        load_resnet10(deeper, file)
    plain = filled(lambda: unet(encoder="scratch", channels=(4, 8)))
    with pytest.raises(InputError, match="not a UNet with a PlainEncoder"):
        load_resnet10(plain, file)


def test_encoder_with_more_leaves_is_refused(file, random_encoder):
    """A leaf that the table lacks would stay random without anyone noticing."""
    bias = eqx.tree_at(
        lambda e: e.conv_init.bias, random_encoder, jnp.zeros(64), is_leaf=lambda x: x is None
    )
    with pytest.raises(IntegrityError, match="conv_init.bias"):
        load_resnet10(bias, file)
