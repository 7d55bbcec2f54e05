"""Writes what PyTorch's networks compute, and files of PyTorch, for tests that do without it.

    pip install torch torchvision efficientnet_lite_pytorch
    python scripts/make_torch_references.py

Weights and images derive from their names (tests/torch_files.py) and are not stored. Of each map
of each network, in inference mode and float64: shape, largest magnitude, evenly spaced entries. The
files are a small state dict in either format of `torch.save`, with views among its tensors.
"""

# PyTorch and what needs it are not installed where types are checked.
# pyright: reportMissingImports=false

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

import parity  # noqa: E402 (needs the path above)
import torch_files  # noqa: E402

DATA = ROOT / "tests" / "data"

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet(name: str, image: np.ndarray) -> list[torch.Tensor]:
    """The stem's map before pooling, and the outputs of the four stages."""
    network = exact(torchvision.models.get_model(name))
    x = as_batch((image - MEAN) / STD)
    x = network.relu(network.bn1(network.conv1(x)))
    maps = [x]
    x = network.maxpool(x)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def efficientnet_lite0(image: np.ndarray) -> list[torch.Tensor]:
    """The last map of each stride."""
    # Without an image size, its "SAME" padding is that of the image at hand.
    network = exact(EfficientNet.from_name("efficientnet-lite0", image_size=None))
    x = network._swish(network._bn0(network._conv_stem(as_batch((image * 255 - 127) / 128))))
    maps = []
    for block in network._blocks:
        x = block(x)
        maps.append(x)
    return [maps[i] for i in (0, 2, 4, 10, 15)]


def exact(network: Any) -> Any:
    """The network with the weights of its names, in inference mode and float64."""
    values = {
        name: torch.from_numpy(torch_files.torch_variable(name, tuple(tensor.shape)))
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(values)
    return network.double().eval()


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1)[None])


def save_state_dict() -> list[Path]:
    """Saves the arrays that tests/test_torch_reader.py has, from a module and beside it."""
    wide = torch.from_numpy(parity.values("wide", (4, 3, 2, 2)))
    module: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2))
    module = module.to(memory_format=torch.channels_last)
    bias = torch.from_numpy(parity.values("bias", (4,)))
    module.load_state_dict({"0.weight": wide, "0.bias": bias})
    values = module.state_dict()
    values["half"] = wide.half()
    values["turned"] = wide.reshape(12, 4)[2:, 1:].T
    values["count"] = torch.tensor(7)
    paths = [DATA / "torch_zip.pth", DATA / "torch_legacy.pth"]
    for path in paths:
        torch.save(values, path, _use_new_zipfile_serialization=path.stem == "torch_zip")
    return paths


@torch.no_grad()
def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for size in torch_files.SIZES:
        image = torch_files.image(*size).astype(np.float64)
        networks = {name: resnet(name, image) for name in ("resnet18", "resnet34", "resnet50")}
        networks["efficientnet_lite0"] = efficientnet_lite0(image)
        for name, maps in networks.items():
            for i, tensor in enumerate(maps):
                array = tensor[0].numpy().transpose(1, 2, 0)
                at = f"{name}/{size[0]}x{size[1]}/{i}"
                print(at, array.shape, array.mean(), array.std(), np.abs(array).max())
                arrays[f"{at}/shape"] = np.array(array.shape)
                arrays[f"{at}/scale"] = np.abs(array).max()
                arrays[f"{at}/samples"] = torch_files.sample(array).astype(np.float32)
    path = DATA / "encoders.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays)
    packages = ("torch", "torchvision", "efficientnet_lite_pytorch", "numpy")
    about = {
        "command": "python scripts/make_torch_references.py",
        "seed": "none: weights and images derive from their names, see tests/torch_files.py",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages},
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (path, *save_state_dict())
        },
    }
    (DATA / "encoders.provenance.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
