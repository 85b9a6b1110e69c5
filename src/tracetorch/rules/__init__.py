"""Learning rules: one per file, one contract (`rules.base`)."""

from .base import Rule
from .eligibility import Eligibility
from .input_trace import InputTrace
from .literature import OSTL, OTPE, OTTT, SLTT, EProp
from .mean_field import MeanField
from .mean_rate import MeanRate
from .truncated import Truncated

__all__ = [
    "OSTL",
    "OTPE",
    "OTTT",
    "SLTT",
    "EProp",
    "Eligibility",
    "InputTrace",
    "MeanField",
    "MeanRate",
    "Rule",
    "Truncated",
]
