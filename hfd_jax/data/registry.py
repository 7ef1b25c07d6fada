"""The raw data sets that tools.prepare_data, tools.check_data and tools.benchmark can read.

To add one, write a `Reader` in a file of its own and list it here. The tools take its name as --dataset and its options
as flags.
"""

from hfd_jax.data import folder, sen12ms, spacenet6, whu_opt_sar
from hfd_jax.data.reader import Reader

# Name on the command line -> reader. Layouts are recognised in this order.
READERS: dict[str, type[Reader]] = {
    "folder": folder.FolderSource,
    "spacenet6": spacenet6.Spacenet6Source,
    "sen12ms": sen12ms.Sen12msSource,
    "dfc2020": sen12ms.Dfc2020Source,
    "whu_opt_sar": whu_opt_sar.WhuOptSarSource,
}
