"""The network's own operations: one public function each, with a PyTorch reference that defines what is correct."""

from .ops import neighbor_attention as neighbor_attention
from .ops import select_blocks as select_blocks
from .ops import selected_attention as selected_attention
