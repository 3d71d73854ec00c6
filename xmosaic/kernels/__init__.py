"""The network's own operations: one public function each, with a PyTorch reference that defines what is correct."""

from .choice import require_float8 as require_float8
from .ops import add_norm as add_norm
from .ops import block_means as block_means
from .ops import combine as combine
from .ops import combine_selected as combine_selected
from .ops import gated_product as gated_product
from .ops import local_attention as local_attention
from .ops import neighbor_attention as neighbor_attention
from .ops import rotate as rotate
from .ops import select_blocks as select_blocks
from .ops import selected_attention as selected_attention
from .ops import sum_norm as sum_norm
from .ops import swiglu as swiglu
from .rows import GateBound as GateBound
from .rows import Rows as Rows
from .rows import add_norm_rows as add_norm_rows
from .rows import gate_bound as gate_bound
from .rows import gated_rows as gated_rows
from .rows import multiply_rows as multiply_rows
from .rows import norm_rows as norm_rows
from .rows import quantise_rows as quantise_rows
from .sharing import Patches as Patches
from .sharing import Shared as Shared
from .sharing import share_neighbors as share_neighbors
