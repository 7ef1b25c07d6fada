"""Runs the PyTorch steps of `peer_torch.py` on the same arrays and weights, and compares their results with JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from hfd_jax.core import losses
from hfd_jax.core.errors import UserError
from hfd_jax.data.inputs import network_input
from hfd_jax.distill.hfd import HFD
from tools.bench import cases, peer_torch
from tools.bench.cases import Shapes


@dataclasses.dataclass(frozen=True)
class Flavour:
    """Execution mode and precision of PyTorch."""

    compiled: bool
    bf16: bool

    @property
    def name(self) -> str:
        return f"torch {'compile' if self.compiled else 'eager'} {'bf16' if self.bf16 else 'float32'}"


def check_config(config: ConfigDict) -> None:
    """Raises UserError if the config uses something that the peer does not implement."""
    plain = {"model.architecture": "hfdnet", "student.architecture": "", "model.context": False}
    plain |= {"loss.ce": 1.0, "loss.dice": 1.0, "loss.class_weights": "none"}
    plain |= {"distill.method": ("hfd",), "optim.weight_decay": 1e-2}
    if not config.optim.clip_norm:
        raise UserError("config.optim.clip_norm is 0: the PyTorch peer always clips")
    for field, value in plain.items():
        found = config
        for part in field.split("."):
            found = found[part]
        if found != value:
            raise UserError(f"config.{field} is {found!r}: the PyTorch peer supports only {value!r}")


class Peer:
    """Networks, weights and a batch on PyTorch's device.

    Args:
      config, shapes: those of the JAX steps.
    """

    def __init__(self, config: ConfigDict, shapes: Shapes):
        check_config(config)
        self._config, self._shapes = config, shapes
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._student_setup = cases.make_setup(config, shapes, cases.NETWORKS["student_step"](config))
        self._batch = jax.device_get(network_input(cases.make_batch(shapes), self._student_setup.inputs))
        key, model = jax.random.key(3), self._student_setup.model
        self._variables = {
            sensor: _with_flow(jax.device_get(jax.jit(model.init)(key, self._batch[sensor][:1])))
            for sensor in ("sar", "eo")
        }

    def network(self, sensor: str) -> peer_torch.HFDNet:
        """Returns the network of a sensor with the weights of the JAX network."""
        bands = self._shapes.sar_bands if sensor == "sar" else self._shapes.eo_bands
        network = peer_torch.HFDNet(bands, self._shapes.classes, self._config.model)
        peer_torch.copy_weights(network, self._variables[sensor])
        return network.to(self._device)

    def batch(self, channels_last: bool = True) -> tuple[torch.Tensor, ...]:
        """Returns (sar, eo, label, valid), the input of a step."""
        sar, eo = (peer_torch.images(self._batch[sensor], self._device, channels_last) for sensor in ("sar", "eo"))
        label = torch.tensor(self._batch["label"].astype(np.int64)).to(self._device)
        valid = torch.tensor(self._batch["sar_valid"] & self._batch["eo_valid"]).to(self._device)
        return sar, eo, label, valid

    def training_call(self, what: str, flavour: Flavour) -> Callable[[], Any]:
        """Returns a function that runs one training step of one of cases.NETWORKS."""
        sar, eo, label, valid = self.batch()
        objective, clip_norm = self._student_setup.objective, self._config.optim.clip_norm
        student = self.network("eo" if what == "teacher_step" else "sar").to(memory_format=torch.channels_last)
        teacher = distiller = None
        if what == "student_step" and objective.distils:
            teacher = self.network("eo").to(memory_format=torch.channels_last)
            options = self._config.distill.hfd
            hfd = HFD(taps=tuple(options.taps), tap_weights=tuple(options.tap_weights))
            distiller = peer_torch.Distiller(student.channels, hfd.taps, hfd.weights()).to(self._device)
        trainer = peer_torch.Trainer(
            student,
            teacher,
            distiller,
            weight=self._config.distill.hfd.weight,
            clip_norm=clip_norm,
            bf16=flavour.bf16,
            compiled=flavour.compiled,
        )
        image = eo if what == "teacher_step" else sar
        return lambda: trainer.step(image, eo, label, valid).item()

    def inference_call(self, flavour: Flavour) -> Callable[[], Any]:
        """Returns a function that computes class maps."""
        network = self.network("sar").to(memory_format=torch.channels_last).eval()
        forward, sar = torch.compile(network) if flavour.compiled else network, self.batch()[0]

        def call():
            with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=flavour.bf16):
                return forward(sar)[0].argmax(1).to(torch.uint8).cpu()

        return call

    def largest_difference(self) -> dict[str, float]:
        """Compares JAX with PyTorch in float32: logits, taps and training loss, relative to the largest value."""
        model, image = self._student_setup.model, self._batch["sar"]
        logits, features = jax.device_get(jax.jit(model.apply)(self._variables["sar"], image))
        sar, _, label, _ = self.batch(channels_last=False)
        network = self.network("sar").eval()
        with torch.no_grad():
            peer_logits, peer_features = network(sar)
            peer_loss = float(peer_torch.segmentation_loss(network.train()(sar)[0], label))
        pairs = {"logits": (logits, peer_logits)} | {name: (features[name], peer_features[name]) for name in features}
        found = {
            name: float(np.abs(own - peer.permute(0, 2, 3, 1).cpu().numpy()).max() / np.abs(own).max())
            for name, (own, peer) in pairs.items()
        }
        (trained, _), _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
            self._variables["sar"], image
        )
        loss = float(
            losses.cross_entropy(trained, self._batch["label"]) + losses.soft_dice(trained, self._batch["label"])
        )
        return found | {"loss": abs(loss - peer_loss) / abs(loss)}


def _with_flow(variables: Any) -> Any:
    """Fills the flow kernels, which are initialised with zeros, so that the warp is tested with a non-zero flow."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return (
            rng.normal(0, 0.05, leaf.shape).astype(np.float32) if "flow_" in name and name.endswith("kernel") else leaf
        )

    return jax.tree_util.tree_map_with_path(fill, variables)
