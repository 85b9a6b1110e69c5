"""Learning rules: one per file, one contract (`rules.base`)."""

from .base import Rule
from .input_trace import InputTrace
from .mean_rate import MeanRate
from .truncated import Truncated

__all__ = ["InputTrace", "MeanRate", "Rule", "Truncated"]
