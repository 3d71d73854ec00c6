"""Cyclone tracks: found in every member of a forecast, followed, and compared with a best track."""

from .besttrack import read_best_track as read_best_track
from .errors import ensemble_mean_track as ensemble_mean_track
from .errors import track_error as track_error
from .finder import tracks as tracks
