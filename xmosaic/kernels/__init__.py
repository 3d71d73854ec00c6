"""The network's own operations: one public function each, with a PyTorch reference that defines what is correct."""

from .ops import add_norm as add_norm
from .ops import block_means as block_means
from .ops import combine as combine
from .ops import local_attention as local_attention
from .ops import neighbor_attention as neighbor_attention
from .ops import rotate as rotate
from .ops import select_blocks as select_blocks
from .ops import selected_attention as selected_attention
from .ops import swiglu as swiglu
