"""Networks for images: ResNet-50 (He et al. 2015), VGG-16 (Simonyan and Zisserman 2014), and a small residual network.

Modules are named and registered in torchvision's order, on which the buckets of DistributedDataParallel depend; the stride of a
bottleneck is in its 3x3 convolution, also as there.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes a norm for so many channels."""

Activation = Callable[[], nn.Module]

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; four times `width` channels come out."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; `norm` and `activation` as in `SmallResNet`."""

    def __init__(
        self, before: int, width: int, stride: int, norm: Norm = nn.BatchNorm2d, activation: Activation = _relu
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(before, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet50(nn.Module):
    """For images of 3 x 224 x 224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, 1)
        self.layer2 = _stage(256, 128, 4, 2)
        self.layer3 = _stage(512, 256, 6, 2)
        self.layer4 = _stage(1024, 512, 3, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class SmallResNet(nn.Module):
    """Three stages of one block, for images of 28 x 28 in grey.

    Another `norm` or `activation` keeps its place's name (bn1, relu), as in torchvision.
    """

    def __init__(
        self, classes: int = 10, width: int = 24, norm: Norm = nn.BatchNorm2d, activation: Activation = _relu
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = activation()
        self.layer1 = BasicBlock(width, width, 1, norm, activation)
        self.layer2 = BasicBlock(width, 2 * width, 2, norm, activation)
        self.layer3 = BasicBlock(2 * width, 4 * width, 2, norm, activation)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


class VGG16(nn.Module):
    """For images of 3 x 224 x 224; `norm` puts a batch norm behind each convolution."""

    def __init__(self, classes: int = 1000, norm: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg_features(norm))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _vgg_features(norm: bool) -> Iterator[nn.Module]:
    before = 3
    for stage in VGG16_STAGES:
        for width in stage:
            yield nn.Conv2d(before, width, 3, padding=1)
            if norm:
                yield nn.BatchNorm2d(width)
            yield nn.ReLU(inplace=True)
            before = width
        yield nn.MaxPool2d(2)


def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(before, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


def _shortcut(before: int, after: int, stride: int, norm: Norm = nn.BatchNorm2d) -> nn.Sequential | None:
    if stride == 1 and before == after:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), norm(after))
