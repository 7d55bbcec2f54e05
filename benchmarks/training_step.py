"""Time of one training step: this package, the Flax original and a PyTorch twin.

All start from the same weights and see the same batch; before anything is timed, their losses on
it must agree. Each contender has a process of its own, and they take turns. Prints one JSON line.
Ours is the step that `train` runs, with its checks and scores and from uint8 images; the others'
hold the loss, its gradient and Adam, from float images. In bfloat16, PyTorch runs under autocast.

    python -m benchmarks.training_step --model scratch --repeats 20
    python -m benchmarks.training_step --model efficientnet_lite0 --tuned --against torch
    python -m benchmarks.training_step --device gpu --batch 64 --precision float32,bfloat16 \
        --against torch,torch_compile
"""

from collections.abc import Callable

from benchmarks.comparison import Options, compare, ours_with, torch_fastest


def ours(options: Options) -> Callable[[], float]:
    import equinox as eqx
    import jax
    import numpy as np

    import eqxunet as eu
    from eqxunet.data.batches import Batch
    from eqxunet.data.kinds import BACKGROUND, PET
    from eqxunet.training import initialise
    from eqxunet.training.loop import compile_step

    model, state = ours_with(options)
    train_config = eu.TrainConfig(
        batch_size=options.batch,
        schedule="constant",
        augment=False,
        precision=options.precision,
        freeze_encoder=options.frozen,
        encoder_lr_scale=1,
        keep_statistics=False,  # as the others have it
    )
    trainer, train_state = eqx.filter_jit(initialise)(
        model, state, train_config, eu.Binary("trimap"), 1
    )
    jax.clear_caches()  # as the command line does
    images, masks = options.data()
    batch = Batch(images, np.where(masks, PET, BACKGROUND).astype(np.uint8))
    step = compile_step((trainer, batch), train_state)

    def run() -> float:
        nonlocal train_state
        train_state, metrics = step((trainer, batch), train_state)
        jax.block_until_ready(train_state)
        return float(metrics.loss)

    return run


def flax(options: Options) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp
    import optax

    from scripts import flax_models

    scratch = options.model == "scratch"
    model = flax_models.UNet() if scratch else flax_models.ResNetUNet()
    variables = options.variables()
    params, statistics = jax.device_put((variables["params"], variables["batch_stats"]))
    # The original differentiates in the decoder's parameters only, but updates all of them.
    trainable, frozen = (
        (params, {})
        if scratch
        else ({"decoder": params["decoder"]}, {"encoder": params["encoder"]})
    )
    optimizer = optax.adam(1e-3)
    images, masks = options.data()
    images = jnp.asarray(images, jnp.float32) / 255
    targets = jnp.asarray(masks[..., None], jnp.float32)

    def loss_fn(trainable, statistics):
        logits, updates = model.apply(
            {"params": trainable | frozen, "batch_stats": statistics},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        probability = jax.nn.sigmoid(logits)
        overlap = 2 * jnp.sum(probability * targets, (1, 2, 3)) + 1e-6
        total = jnp.sum(probability, (1, 2, 3)) + jnp.sum(targets, (1, 2, 3)) + 1e-6
        entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))
        return entropy + jnp.mean(1 - overlap / total), updates["batch_stats"]

    @jax.jit
    def step(trainable, statistics, opt_state):
        (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            trainable, statistics
        )
        updates, opt_state = optimizer.update(gradient, opt_state)
        return loss, optax.apply_updates(trainable, updates), statistics, opt_state

    carry = (trainable, statistics, optimizer.init(trainable))

    def run() -> float:
        nonlocal carry
        loss, *carry = step(*carry)
        jax.block_until_ready(carry)
        return float(loss)

    return run


def torch_step(options: Options, *, channels_last: bool, compiled: bool) -> Callable[[], float]:
    import torch
    import torch.nn.functional as F

    from benchmarks import torch_models

    device = "cuda" if options.device == "gpu" else "cpu"
    model = torch_models.build(options.model, options.variables(), frozen=options.frozen)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    images, masks = map(torch.from_numpy, options.data())
    images = (images.permute(0, 3, 1, 2).to(device).float() / 255).contiguous(memory_format=layout)
    targets = masks[:, None].float().to(device).contiguous(memory_format=layout)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, 1e-3, fused=True)
    autocast = torch_fastest(options)

    def loss_fn() -> torch.Tensor:
        with autocast:
            logits = model(images)
        logits = logits.float()
        probability = torch.sigmoid(logits)
        overlap = 2 * (probability * targets).sum((1, 2, 3)) + 1e-6
        total = probability.sum((1, 2, 3)) + targets.sum((1, 2, 3)) + 1e-6
        entropy = F.binary_cross_entropy_with_logits(logits, targets)
        return entropy + (1 - overlap / total).mean()

    forward = torch.compile(loss_fn) if compiled else loss_fn

    def run() -> float:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def torch_eager(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=False, compiled=False)


def torch_channels_last(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=True, compiled=False)


def torch_compile(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=True, compiled=True)


if __name__ == "__main__":
    compare(
        "training_step",
        "Time of one training step.",
        ours,
        {
            "flax": [flax],
            "torch": [torch_eager, torch_channels_last],
            "torch_compile": [torch_compile],
        },
    )
