"""Time of the forward pass on a batch: this package, the Flax original and a PyTorch twin.

All hold the same weights and see the same batch; before anything is timed, the mean size of their
logits must agree. Each contender has a process of its own, and they take turns. Prints one JSON
line. In bfloat16, PyTorch runs under autocast.

    python -m benchmarks.inference --model scratch --repeats 20
"""

from collections.abc import Callable

from benchmarks.comparison import Options, compare, ours_with, torch_fastest


def ours(options: Options) -> Callable[[], float]:
    import equinox as eqx
    import numpy as np

    from eqxunet.data.augment import to_float
    from eqxunet.evaluation import forward

    model, state = ours_with(options)
    model = eqx.nn.inference_mode(model)
    images = to_float(options.data()[0]).astype(options.precision)
    return lambda: float(np.abs(forward(model, state, images)).mean())


def flax(options: Options) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from scripts import flax_models

    model = flax_models.UNet() if options.model == "scratch" else flax_models.ResNetUNet()
    variables = jax.device_put(options.variables())
    images = jnp.asarray(options.data()[0], jnp.float32) / 255
    forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    return lambda: float(np.abs(forward(variables, images)).mean())


def torch_forward(options: Options, *, channels_last: bool, compiled: bool) -> Callable[[], float]:
    import torch

    from benchmarks import torch_models

    device = "cuda" if options.device == "gpu" else "cpu"
    model = torch_models.build(options.model, options.variables(), frozen=options.frozen)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.eval().to(device, memory_format=layout)
    images = torch.from_numpy(options.data()[0]).permute(0, 3, 1, 2).to(device).float() / 255
    images = images.contiguous(memory_format=layout)
    forward = torch.compile(model) if compiled else model
    autocast = torch_fastest(options)

    def run() -> float:
        with torch.inference_mode(), autocast:
            return forward(images).float().abs().mean().item()

    return run


def torch_eager(options: Options) -> Callable[[], float]:
    return torch_forward(options, channels_last=False, compiled=False)


def torch_channels_last(options: Options) -> Callable[[], float]:
    return torch_forward(options, channels_last=True, compiled=False)


def torch_compile(options: Options) -> Callable[[], float]:
    return torch_forward(options, channels_last=True, compiled=True)


if __name__ == "__main__":
    compare(
        "inference",
        "Time of the forward pass on a batch.",
        ours,
        {
            "flax": [flax],
            "torch": [torch_eager, torch_channels_last],
            "torch_compile": [torch_compile],
        },
    )
