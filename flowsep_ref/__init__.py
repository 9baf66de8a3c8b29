"""FlowSep in PyTorch: readable, exact, trainable."""

from flowsep_ref.checkpoint import CheckpointError
from flowsep_ref.config import ConfigError, FlowSepConfig
from flowsep_ref.model import FlowSep

__all__ = ["CheckpointError", "ConfigError", "FlowSep", "FlowSepConfig"]
