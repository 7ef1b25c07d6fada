"""Follows docs/extending.md literally: executes its code blocks, registers the classes and trains them for two steps."""

import re

import jax
import pytest

from configs import scenes as scenes_config
from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train import stages
from hfd_jax.train.config_flags import field_names
from hfd_jax.train.validate import check_fields
from tests.conftest import ROOT
from tests.runs import COARSE, log_of


@pytest.fixture(scope="module")
def document():
    """Heading -> its Python blocks, in order."""
    text = (ROOT / "docs" / "extending.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {
        title: re.findall(r"^```python\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
        for title, part in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.fixture
def follow(document):
    """Executes the blocks under a heading in one namespace; restores the registries after the test."""
    before = [(registry, dict(registry)) for registry in (METHODS, ARCHITECTURES)]

    def execute(heading):
        namespace = {"METHODS": METHODS, "ARCHITECTURES": ARCHITECTURES, "__name__": "followed"}
        for block in document[heading]:
            exec(compile(block, heading, "exec"), namespace)

    yield execute
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def small(tmp_path, scenes_dir, **fields):
    config = scenes_config.get_config()
    config.update_from_flattened_dict(
        {
            "data.dir": scenes_dir,
            "data.batch_size": 8,
            "data.scenes.train": 24,
            "data.scenes.validation": 6,
            "data.scenes.test": 10,
            "model.width": 4,
            "teacher.steps": 2,
            "student.steps": 2,
            "train.log_every": 1,
            "eval.batch_size": jax.device_count(),
            "eval.panels": 0,
            "baselines": (),
            **fields,
        }
    )
    return config


def test_a_method(follow, tmp_path, scenes_dir):
    follow("A distillation method")
    config = small(tmp_path, scenes_dir, **{"distill.method": ("cosine",), **COARSE})
    assert {"distill.cosine.weight", "distill.cosine.taps", "distill.cosine.margin"} <= set(field_names(config))
    stages.train(config, str(tmp_path / "run"))
    assert 0 < log_of(tmp_path / "run", "student")[2]["cosine_A"] < 2
    config.distill.cosine.margin = 2.0
    with pytest.raises(ValueError, match=r"config.distill.cosine.margin is 2.0: expected a share, 0 to 1"):
        check_fields(config)


def test_a_network(follow, tmp_path, scenes_dir):
    follow("A network")
    config = small(tmp_path, scenes_dir, **{"model.architecture": "tiny", "distill.hfd.taps": ("A",)})
    config.model.blocks = 2
    stages.train(config, str(tmp_path / "run"))
    assert log_of(tmp_path / "run", "student")[2]["hfd_A"] > 0
    record = CheckpointReader(str(tmp_path / "run" / "checkpoints" / "student")).record(2)
    assert record["model"] == {"architecture": "tiny", "width": 4, "blocks": 2}
    config.model.blocks = 0
    with pytest.raises(ValueError, match=r"config.model.blocks is 0: expected more than 0 \(tiny\)"):
        check_fields(config)
