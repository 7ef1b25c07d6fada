"""Networks, loss, optimiser and training step in idiomatic PyTorch, as a reference for speed.

Only `tools.benchmark --peer=torch` imports this file. Modules have the same names as in JAX, and in the encoder those
of torchvision, so that `copy_weights` can transfer the weights and the results can be compared.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import EPS
from hfd_jax.distill.hfd import STD_EPS
from hfd_jax.models.alignment import LEVELS
from hfd_jax.models.resnet import DEPTHS, STAGES
from hfd_jax.models.torch_weights import torch_name


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


class Block(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = features * (4 if bottleneck else 1)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1, self.bn1 = conv(inputs, features, 1), nn.BatchNorm2d(features)
            self.conv2, self.bn2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
            self.conv3, self.bn3 = conv(features, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y, inplace=True)


class ResNet(nn.Module):
    """ResNet encoder with the parameter names of torchvision."""

    def __init__(self, bands: int, depth: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv(bands, width, 7, 2), nn.BatchNorm2d(width)
        inputs, bottleneck = width, depth >= 50
        for stage, blocks in enumerate(DEPTHS[depth]):
            layer = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layer.append(Block(inputs, width * 2**stage, stride, bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        features = {}
        for stage, name in enumerate(STAGES):
            x = features[name] = getattr(self, f"layer{stage + 1}")(x)
        return features


class Selection(nn.Module):
    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.lateral, self.bn = conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.gate, self.select = conv(channels, channels, 1, bias=True), conv(channels, channels, 1)

    def forward(self, x):
        x = self.bn(self.lateral(x))
        return self.select(x + torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))) * x)


def upsample(x, shape):
    return F.interpolate(x, size=shape, mode="bilinear", align_corners=False)


def warp(x, flow):
    """Samples x [B, C, h, w] at output position + flow [B, 2, H, W] (dy, dx in output pixels)."""
    height, width = flow.shape[2:]
    flow = flow.float()
    rows = torch.arange(height, device=x.device)[:, None] + 0.5 + flow[:, 0]
    cols = torch.arange(width, device=x.device)[None, :] + 0.5 + flow[:, 1]
    grid = torch.stack((cols * (2 / width) - 1, rows * (2 / height) - 1), -1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)


class Alignment(nn.Module):
    def __init__(self, inputs: Mapping[str, int], channels: int, align: str):
        super().__init__()
        self.align = align
        for name in LEVELS:
            self.add_module(f"selection_{name}", Selection(inputs[name], channels))
        for name in LEVELS[:-1]:
            if align == "flow":
                self.add_module(f"flow_{name}", conv(2 * channels, 2, 3, bias=True))
            self.add_module(f"merge_{name}", conv(channels, channels, 3))
            self.add_module(f"bn_{name}", nn.BatchNorm2d(channels))
        self.aggregate, self.bn_aggregate = conv(4 * channels, channels, 3), nn.BatchNorm2d(channels)

    def forward(self, features):
        lateral = {name: getattr(self, f"selection_{name}")(features[name]) for name in LEVELS}
        level = lateral["C5"]
        levels = [level]
        for name in reversed(LEVELS[:-1]):
            here = lateral[name]
            coarse = upsample(level, here.shape[2:])
            if self.align == "flow":
                coarse = warp(level, getattr(self, f"flow_{name}")(torch.cat((here, coarse), 1)))
            merged = getattr(self, f"merge_{name}")(here + coarse)
            level = F.relu(getattr(self, f"bn_{name}")(merged), inplace=True)
            levels.append(level)
        finest = levels[-1].shape[2:]
        aggregated = torch.cat([upsample(level, finest) for level in levels], 1)
        return F.relu(self.bn_aggregate(self.aggregate(aggregated)), inplace=True)


class ConvBN(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.bn = conv(inputs, outputs, 3), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class DetailPath(nn.Module):
    def __init__(self, bands: int, channels: Mapping[int, int]):
        super().__init__()
        self.strides, inputs = tuple(channels), bands
        for stride, outputs in channels.items():
            for index in range(2 if stride == self.strides[0] else 1):
                self.add_module(f"stride{stride}_{index}", ConvBN(inputs, outputs))
                inputs = outputs

    def forward(self, x):
        maps = {}
        for stride in (1, 2, 4):
            x = F.avg_pool2d(x, 2) if stride > 1 else x
            if stride in self.strides:
                x = getattr(self, f"stride{stride}_0")(x)
                x = getattr(self, f"stride{stride}_1")(x) if stride == self.strides[0] else x
                maps[stride] = x
        return maps


class FineDecoder(nn.Module):
    def __init__(self, inputs: int, channels: Mapping[int, int]):
        super().__init__()
        for stride, outputs in sorted(channels.items(), reverse=True):
            self.add_module(f"project{stride}", conv(inputs, outputs, 1))
            self.add_module(f"merge{stride}", ConvBN(outputs, outputs))
            inputs = outputs

    def forward(self, x, detail):
        for stride in sorted(detail, reverse=True):
            here, x = detail[stride], getattr(self, f"project{stride}")(x)
            x = x if x.shape == here.shape else upsample(x, here.shape[2:])
            x = getattr(self, f"merge{stride}")(here + x)
        return x


class HFDNet(nn.Module):
    """x [B, bands, H, W] -> (logits [B, classes, H, W] float32, features).

    `model` is config.model.
    """

    def __init__(self, bands: int, classes: int, model: Any):
        super().__init__()
        channels = model.align_channels or model.width * (4 if model.depth >= 50 else 2)
        sizes = {name: model.width * 2**k * (4 if model.depth >= 50 else 1) for k, name in enumerate(STAGES)}
        self.encoder, self.alignment = ResNet(bands, model.depth, model.width), Alignment(sizes, channels, model.align)
        self.channels = {**sizes, "P": channels, "A": channels}
        self.detail = None
        if model.detail_channels:
            strides = zip((1, 2, 4), model.detail_channels, strict=True)
            fine = {stride: count for stride, count in strides if stride >= model.stride}
            self.detail, self.decoder = DetailPath(bands, fine), FineDecoder(channels, fine)
            self.channels["A"] = fine[model.stride]
        self.classifier = conv(self.channels["A"], classes, 1, bias=True)

    def forward(self, x):
        features = self.encoder(x)
        finest = pyramid = self.alignment(features)
        if self.detail is not None:
            finest = self.decoder(pyramid, self.detail(x))
        return upsample(self.classifier(finest).float(), x.shape[2:]), {**features, "P": pyramid, "A": finest}


class Adapter(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.Conv_0, self.BatchNorm_0 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.Conv_1 = conv(outputs, outputs, 1, bias=True)

    def forward(self, x):
        return self.Conv_1(F.relu(self.BatchNorm_0(self.Conv_0(x)), inplace=True))


class Distiller(nn.Module):
    def __init__(self, channels: Mapping[str, int], taps: tuple[str, ...], weights: tuple[float, ...]):
        super().__init__()
        self.taps, self.weights = taps, weights  # the weights have sum 1
        for tap in taps:
            self.add_module(f"adapter_{tap}", Adapter(channels[tap], channels[tap]))
            self.register_parameter(f"log_variance_{tap}", nn.Parameter(torch.zeros(channels[tap])))

    def forward(self, student, teacher, valid):
        losses = []
        for tap in self.taps:
            adapted = getattr(self, f"adapter_{tap}")(student[tap])
            with torch.autocast(valid.device.type, enabled=False):
                target = teacher[tap].float()
                mask = F.adaptive_avg_pool2d(valid[:, None].float(), target.shape[2:]) >= 0.5
                squared = (adapted.float() - standardise(target, mask)) ** 2
                errors = (squared * mask).sum((0, 2, 3)) / mask.sum().clamp(min=1)
                log_variance = getattr(self, f"log_variance_{tap}")
                losses.append((torch.exp(-log_variance) * errors + log_variance).mean() / 2)
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))


def standardise(x, mask):
    over = (0, 2, 3)
    count = mask.sum(over, keepdim=True).clamp(min=1)
    mean = (x * mask).sum(over, keepdim=True) / count
    centred = (x - mean) * mask
    return centred * torch.rsqrt((centred**2).sum(over, keepdim=True) / count + STD_EPS)


def segmentation_loss(logits, label):
    """Cross-entropy plus soft Dice over the classes that occur."""
    entropy = F.cross_entropy(logits, label, ignore_index=IGNORE_LABEL)
    valid = (label != IGNORE_LABEL)[:, None]
    probability = torch.softmax(logits, 1) * valid
    truth = F.one_hot(torch.where(valid[:, 0], label, 0), logits.shape[1]).permute(0, 3, 1, 2) * valid
    count = valid.sum().clamp(min=1)
    overlap, predicted, present = (x.sum((0, 2, 3)) / count for x in (probability * truth, probability, truth))
    dice = (2 * overlap + EPS) / (predicted + present + EPS)
    occurs = present > 0
    return entropy + ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


class Trainer:
    """Runs training steps.

    Args:
      student, teacher, distiller: the networks; without a teacher the student learns from labels only.
      weight: weight of the feature distillation.
      clip_norm: maximum norm of the gradient.
      bf16: whether to use autocast to bfloat16; otherwise float32.
      compiled: whether to use torch.compile.
    """

    def __init__(
        self,
        student: HFDNet,
        teacher: HFDNet | None = None,
        distiller: Distiller | None = None,
        *,
        weight: float,
        clip_norm: float,
        bf16: bool = False,
        compiled: bool = False,
    ):
        self.student, self.teacher, self.distiller = student, teacher, distiller
        self.weight, self.clip_norm, self.bf16 = weight, clip_norm, bf16
        modules = [module for module in (student, distiller) if module is not None]
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        kernels = [parameter for parameter in self.parameters if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        for module in modules:
            module.train()
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._loss = torch.compile(self.loss) if compiled else self.loss

    def loss(self, sar, eo, label, valid):
        with torch.autocast(sar.device.type, torch.bfloat16, enabled=self.bf16):
            if self.teacher is not None:
                with torch.no_grad():
                    _, targets = self.teacher(eo)
            logits, features = self.student(sar)
            loss = segmentation_loss(logits, label)
            if self.teacher is not None:
                loss = loss + self.weight * self.distiller(features, targets, valid)
        return loss

    def step(self, *batch):
        """Updates the parameters; returns the loss before the update."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimiser.step()
        return loss.detach()


def copy_weights(module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copies the variables of a JAX network into a module.

    Raises:
      ValueError: If names are missing or unexpected.
    """
    arrays = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in flatten_dict(variables[collection]).items():
            array = np.asarray(leaf)
            array = array.transpose(3, 2, 0, 1) if path[-1] == "kernel" else array
            arrays[torch_name(path)] = torch.tensor(array)
    found = module.load_state_dict(arrays, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise ValueError(f"weights do not match: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")


def images(array: np.ndarray, device: str, channels_last: bool) -> torch.Tensor:
    """[B, H, W, C] -> float32 [B, C, H, W] on a device."""
    tensor = torch.tensor(array).permute(0, 3, 1, 2).to(device)
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
