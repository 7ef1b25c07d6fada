"""Brings a pretrained ResNet-18, 34, 50 or 101 into the form that training can start from.

  python -m tools.import_weights --input=resnet18.pth --output=weights/resnet18.safetensors
  python -m tools.import_weights --input=timm_resnet50.safetensors --output=weights/resnet50.safetensors
  python -m tools.import_weights --input=moco_sentinel1.pth --bands=VV,VH --output=weights/sar50.safetensors

  python main.py --config=configs/spacenet6.py --workdir=runs/pretrained \\
      --config.teacher.pretrained=weights/resnet50.safetensors --config.student.pretrained=weights/sar50.safetensors

INPUT is a checkpoint with the names of torchvision and timm, which are the same: a .safetensors file, or what
torch.save wrote (.pth, .pt, .tar, .bin; needs PyTorch: pip install torch), of which tensors are read and never code.
The ResNet is found below any prefix or nesting (module., backbone., encoder_q., state_dict, ...). Its classifier (fc)
is left out, and so is what lies beside it (heads, queues, the optimiser). Parameters that are missing, surplus or of
another shape are an error that names them; so are other stems (timm's variants with "d" and the like).

Computed as in torchvision: stride in the 3x3 convolution of a bottleneck (known as v1.5), BatchNorm epsilon 1e-5, 7x7
stem with padding 3, 3x3 maximum pooling with stride 2 and padding 1. Parameters do not tell where a stride sits or what
pools: weights of Caffe's placement, or of timm's anti-aliased resnetblur and resnetaa, would be taken without a word.

When training starts, the stem is fitted to the network's bands. A band of the name of one of the file's bands takes
that band's kernel; R, G, B are also known as B4, B3, B2 (Sentinel-2, Landsat 8). Every other band takes the mean over
the file's bands: from an RGB file all SAR bands do. All are scaled by (bands of the file) / (bands of the network), and
where only some of the file's bands are there, what the sum lacks is added to all alike: the sum over bands, and with it
the size of the activations, stays what it was. Images are standardised with the statistics of the data set that is
trained on, per band, not with those of ImageNet.

OUTPUT is a safetensors file: arrays named as in this project's checkpoints, with depth, width, bands, name and SHA-256
of INPUT.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hfd_jax.core.errors import CheckpointError, ConfigError, UserError
from hfd_jax.core.trees import listed
from hfd_jax.models import pretrained, torch_weights
from hfd_jax.models.resnet import DEPTHS
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    source, output = arguments.input, arguments.output
    digest = pretrained.sha256(source)
    if os.path.exists(output) and os.path.samefile(source, output):
        raise ConfigError(f"--output={output} is the input; it would be replaced")
    try:
        found = torch_weights.take_resnet(read(source), arguments.depth, arguments.prefix)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    bands = tuple(arguments.bands.split(",")) if arguments.bands else ("R", "G", "B") if found.bands == 3 else ()
    if bands and len(set(bands) - {""}) != found.bands:
        raise ConfigError(
            f"--bands={arguments.bands}: expected {found.bands} different names; {source} has so many bands"
        )
    name = os.path.basename(source)
    encoder = pretrained.Encoder(found.variables, found.depth, found.width, bands, name, digest)
    pretrained.write_encoder(output, encoder)
    named = ", ".join(bands) or f"{found.bands} without names (--bands gives them)"
    print(f"found: ResNet-{found.depth}, width {found.width}, prefix {found.prefix or 'none'}, bands {named}")
    print(f"left out: {listed(found.left_out) or 'nothing'}")
    print(f"written: {output}, for --config.teacher.pretrained or --config.student.pretrained")


def read(path: str) -> dict[str, np.ndarray]:
    """Name -> array of the floating point tensors in a checkpoint; UserError where it cannot be read."""
    if not path.endswith(".safetensors"):
        return read_torch(path)
    arrays, _ = pretrained.read_safetensors(path)
    return {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}


def read_torch(path: str) -> dict[str, np.ndarray]:
    """As `read`, in float32, of what torch.save wrote; keys of nested dicts are joined with dots.

    Raises:
      UserError: PyTorch is missing, or the file is damaged or holds objects that only code could bring back.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs PyTorch, which is not installed: pip install torch, or take a .safetensors file"
        ) from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    arrays = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                collect(part, f"{name}.{key}" if name else str(key))
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout is torch.strided:
            arrays[name] = value.detach().float().numpy()

    collect(stored, "")
    return arrays


def reason(error: Exception) -> str:
    """Why PyTorch did not read a file; its own texts advise to switch the safeguard off."""
    text = str(error)
    if "GLOBAL " in text:
        foreign = text.split("GLOBAL ", 1)[1].split()[0]
        return (
            f"holds a pickled {foreign}, which is not loaded, since pickles can run code; expected tensors alone. If "
            "you trust the file, load it in PyTorch and torch.save its state_dict"
        )
    first = (text.strip().splitlines() or [""])[0].split(". ")[0]
    return f"cannot be read as a checkpoint of PyTorch, or is damaged ({type(error).__name__}: {first})"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("import_weights", __doc__)
    parser.add_argument("--input", required=True, help="checkpoint of PyTorch, or .safetensors")
    parser.add_argument("--output", required=True, help="file to write, .safetensors; replaced if it is there")
    parser.add_argument("--depth", type=int, choices=tuple(DEPTHS), help="default: told by the number of blocks")
    parser.add_argument("--bands", help="names of its input bands, in order; default: R,G,B where it has three")
    parser.add_argument("--prefix", help="of the ResNet's names, where the file holds several; default: found")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
