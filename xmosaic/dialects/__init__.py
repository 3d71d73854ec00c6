"""Any dataset's dialect is understood here, and a forecast is put into other tools' dialects."""

from .axes import axis_kind as axis_kind
from .fields import COORDINATE_ATTRS as COORDINATE_ATTRS
from .fields import bare_field as bare_field
from .fields import channel_arrays as channel_arrays
from .fields import run_of as run_of
from .fields import standard_fields as standard_fields
from .fields import standardise as standardise
from .leads import decode_lead as decode_lead
from .meaning import without_fill_values as without_fill_values
from .reader import known_variables as known_variables
from .reader import recognise as recognise
from .recognition import Problem as Problem
from .recognition import Recognition as Recognition
from .recognition import Source as Source
from .recognition import count_problems as count_problems
from .recognition import raise_problems as raise_problems
from .renaming import to_dialect as to_dialect
