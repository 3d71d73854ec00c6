"""Training: from a Dataset to a model, on one GPU or many."""

from .config import Stage as Stage
from .config import TrainConfig as TrainConfig
from .history import plot_history as plot_history
from .history import read_history as read_history
from .loop import train as train
