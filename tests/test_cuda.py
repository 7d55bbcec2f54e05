"""What the models lower to for NVIDIA GPUs, seen without one."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jaxlib.mlir.passmanager import PassManager

from eqxunet import ModelConfig, TrainConfig, build
from eqxunet.data.batches import Batch
from eqxunet.evaluation import forward
from eqxunet.ops import conv2d
from eqxunet.tasks import Binary
from eqxunet.training import initialise, train_step

MODELS = {
    "scratch": ModelConfig(channels=(4, 6, 8)),
    "resnet10": ModelConfig(encoder="resnet10"),
    "efficientnet_lite0": ModelConfig(encoder="efficientnet_lite0"),
}
# Operations whose operands are no part of the fusion that they end up in.
_FENCES = ("dot_general", "convolution", "reduce", "reduce_window", "optimization_barrier")


def lowered(function, *arguments):
    """The module that a function lowers to for CUDA, given arrays and plain values."""
    arrays, static = eqx.partition(
        arguments, lambda x: eqx.is_array(x) or isinstance(x, np.ndarray)
    )

    def of_arrays(arrays):
        return eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array)

    traced = jax.jit(of_arrays).trace(arrays)
    module = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    with module.context:
        PassManager.parse("builtin.module(inline)").run(module.operation)
    return module


def operations(module, name):
    """All operations of a name."""
    found = []

    def look(operation):
        if operation.name == f"stablehlo.{name}":
            found.append(operation)
        for region in operation.regions:
            for block in region:
                for inner in block:
                    look(inner.operation)

    look(module.operation)
    return found


def fused_into(operation):
    """All operations whose values reach an operation by what XLA can fuse with it."""
    seen, waiting = [], [operand.owner for operand in operation.operands]
    while waiting:
        owner = waiting.pop()
        if not hasattr(owner, "name") or owner in seen:  # an argument, or seen on another way
            continue
        seen.append(owner)
        if owner.name.removeprefix("stablehlo.") not in _FENCES:
            waiting += [operand.owner for operand in owner.operands]
    return seen


def products_of_strided_slices(module):
    """Products in whose fusion XLA's GemmFusion met a strided slice, and aborted the process."""
    return [
        product
        for product in operations(module, "dot_general")
        for operation in fused_into(product)
        if operation.name == "stablehlo.slice"
        and any(stride != 1 for stride in operation.attributes["strides"])
    ]


def test_a_strided_slice_before_a_product_is_found():
    def projection(x, kernel):
        return jax.nn.relu(x[:, ::2, ::2]).reshape(-1, 4) @ kernel

    module = lowered(projection, np.ones((2, 6, 6, 4), np.float32), np.ones((4, 8), np.float32))
    assert len(products_of_strided_slices(module)) == 1


def test_a_strided_pointwise_convolution_stays_a_convolution():
    x, kernel = np.ones((6, 6, 4), np.float32), np.ones((1, 1, 4, 8), np.float32)
    module = lowered(lambda x, kernel: conv2d(x, kernel, stride=2), x, kernel)
    assert len(operations(module, "convolution")) == 1
    assert not operations(module, "dot_general")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", MODELS)
@pytest.mark.parametrize("part", ["forward", "step", "step of all"])
def test_no_strided_slice_feeds_a_product(part, encoder, precision):
    model, state = build(MODELS[encoder], key=jax.random.key(0))
    images = np.zeros((4, 32, 32, 3), np.uint8)
    if part == "forward":
        model = eqx.nn.inference_mode(model)
        module = lowered(forward.__wrapped__, model, state, images.astype(precision))
    else:
        config = TrainConfig(precision=precision, freeze_encoder=part == "step")
        trainer, train_state = initialise(model, state, config, Binary("trimap"), total_steps=10)
        batch = Batch(images, np.ones((4, 32, 32), np.uint8))
        module = lowered(train_step.__wrapped__, (trainer, batch), train_state)
    assert len(operations(module, "convolution")) >= 10
    assert not products_of_strided_slices(module)
    assert not any(
        "eqxunet" in str(call.attributes["call_target_name"])
        or "callback" in str(call.attributes["call_target_name"])
        for call in operations(module, "custom_call")
    )
