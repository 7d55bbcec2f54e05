"""BatchNorm folded into the convolutions before it, for inference."""

from typing import TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from .blocks import ConvBlock, ConvNorm, fold_norm
from .layers import Conv

Model = TypeVar("Model", bound=PyTree)


class FoldedBlock(eqx.Module):
    """A ConvBlock for inference: twice 3x3 convolution with bias, ReLU."""

    conv1: Conv
    conv2: Conv

    def __call__(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w c_out"], eqx.nn.State]:
        return self.conv2.then_relu(self.conv1.then_relu(x)), state


def fold(model: Model, state: eqx.nn.State) -> Model:
    """Returns a model whose blocks hold no BatchNorm: the running statistics are in the kernels.

    For inference alone: it equals the model in inference mode, and returns the state as it was.
    """

    def folded(node: PyTree) -> PyTree:
        if isinstance(node, ConvNorm):
            return ConvNorm(node.folded(state), None)
        if isinstance(node, ConvBlock):
            conv1 = fold_norm(node.conv1, node.norm1, state)
            return FoldedBlock(conv1, fold_norm(node.conv2, node.norm2, state))
        return node

    return jax.tree.map(folded, model, is_leaf=lambda node: isinstance(node, ConvBlock | ConvNorm))
