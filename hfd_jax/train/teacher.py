"""The frozen teacher: restores it and prepares the variables that the student's step takes."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.workdir import Workdir
from hfd_jax.data.facts import Facts
from hfd_jax.inference.restore import Network, load_network
from hfd_jax.models.folding import fold
from hfd_jax.train.networks import NetworkSpec, teacher_folder
from hfd_jax.train.prerequisites import check_teacher


def load_teacher(
    config: ConfigDict, workdir: Workdir, facts: Facts, spec: NetworkSpec, parallel: Jit | Pmap
) -> Network:
    """Checks the teacher (`check_teacher`) and restores it."""
    check_teacher(config, workdir, facts, [spec])
    return load_network(teacher_folder(config, workdir), config.teacher.which, parallel)


def frozen_variables(teacher: Network, dtype: Any, parallel: Jit | Pmap) -> Any:
    """Returns the teacher's variables on the host, in `dtype`, with the batch statistics folded into the kernels."""
    host = jax.device_get(parallel.local(teacher.variables))
    return jax.tree.map(lambda x: np.asarray(x, dtype), fold(teacher.model, host))
