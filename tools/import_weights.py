"""Converts a pretrained ResNet-18, 34, 50 or 101 into a file that training can start from.

  python -m tools.import_weights --input=resnet18.pth --output=weights/resnet18.safetensors
  python -m tools.import_weights --input=timm_resnet50.safetensors --output=weights/resnet50.safetensors
  python -m tools.import_weights --input=moco_sentinel1.pth --bands=VV,VH --output=weights/sar50.safetensors

  python main.py --config=configs/spacenet6.py --workdir=runs/pretrained \\
      --config.teacher.pretrained=weights/resnet50.safetensors --config.student.pretrained=weights/sar50.safetensors

INPUT is a checkpoint with the parameter names of torchvision and timm, which are the same: a .safetensors file, or a
file written by torch.save (.pth, .pt, .tar, .bin; needs PyTorch: pip install torch), from which tensors are read and no
code is run. The ResNet may be under any prefix or nesting (module., backbone., encoder_q., state_dict, ...). Its
classifier (fc) and everything outside it (heads, queues, the optimiser) are left out. Missing or unexpected parameters
and wrong shapes are errors that name the parameters; so are other stems (such as timm's variants with "d").

The encoder computes as torchvision's does: the 3x3 convolution of a bottleneck carries the stride (known as v1.5),
BatchNorm has epsilon 1e-5, the stem is 7x7 with padding 3, followed by 3x3 max pooling with stride 2 and padding 1. The
parameters do not show the position of a stride or the kind of pooling, so weights with Caffe's stride placement, or of
timm's anti-aliased resnetblur and resnetaa, are accepted without a warning.

When training starts, the stem is fitted to the network's bands. A band with the name of a band in the file takes the
kernel of that band; R, G, B are equivalent to B4, B3, B2 (Sentinel-2, Landsat 8). Any other band takes the mean over
the file's bands: with an RGB file, this applies to all SAR bands. All kernels are scaled by (bands of the file) /
(bands of the network), and if some of the file's bands are missing, the difference is distributed equally over all
bands. This preserves the sum over bands, and with it the size of the activations. Images are standardised per band with
the statistics of the training data set, not with those of ImageNet.

OUTPUT is a safetensors file: arrays named as in this project's checkpoints, with depth, width, bands, and the name and
SHA-256 of INPUT.
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
        raise ConfigError(f"--output={output} is the input file; expected another path")
    try:
        found = torch_weights.take_resnet(read(source), arguments.depth, arguments.prefix)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    bands = tuple(arguments.bands.split(",")) if arguments.bands else ("R", "G", "B") if found.bands == 3 else ()
    if bands and len(set(bands) - {""}) != found.bands:
        raise ConfigError(
            f"--bands={arguments.bands}: expected {found.bands} different names, the number of bands in {source}"
        )
    name = os.path.basename(source)
    encoder = pretrained.Encoder(found.variables, found.depth, found.width, bands, name, digest)
    pretrained.write_encoder(output, encoder)
    named = ", ".join(bands) or f"{found.bands} without names (set them with --bands)"
    print(f"found: ResNet-{found.depth}, width {found.width}, prefix {found.prefix or 'none'}, bands {named}")
    print(f"left out: {listed(found.left_out) or 'nothing'}")
    print(f"written: {output}, for --config.teacher.pretrained or --config.student.pretrained")


def read(path: str) -> dict[str, np.ndarray]:
    """Reads the floating point tensors of a checkpoint, name -> array.

    Raises:
      UserError: If the file cannot be read.
    """
    if not path.endswith(".safetensors"):
        return read_torch(path)
    arrays, _ = pretrained.read_safetensors(path)
    return {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}


def read_torch(path: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a file written by torch.save as float32; joins the keys of nested dicts with dots.

    Raises:
      UserError: If PyTorch is not installed, or the file is damaged or contains objects that only code can restore.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading this file needs PyTorch, which is not installed: pip install torch, or use a "
            ".safetensors file"
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
    """Explains why PyTorch did not read a file; PyTorch's own message recommends disabling the safeguard."""
    text = str(error)
    if "GLOBAL " in text:
        foreign = text.split("GLOBAL ", 1)[1].split()[0]
        return (
            f"contains a pickled {foreign}, which is not loaded because pickles can run code; expected only tensors. "
            "If you trust the file, load it in PyTorch and save its state_dict with torch.save"
        )
    first = (text.strip().splitlines() or [""])[0].split(". ")[0]
    return f"damaged or not a PyTorch checkpoint ({type(error).__name__}: {first})"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("import_weights", __doc__)
    parser.add_argument("--input", required=True, help="PyTorch checkpoint or .safetensors file")
    parser.add_argument("--output", required=True, help=".safetensors file to write; replaced if it exists")
    parser.add_argument("--depth", type=int, choices=tuple(DEPTHS), help="default: inferred from the number of blocks")
    parser.add_argument("--bands", help="names of the input bands, in order; default: R,G,B if there are three")
    parser.add_argument("--prefix", help="prefix of the ResNet's parameters, if the file contains several ResNets")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
