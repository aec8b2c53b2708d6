"""Training of sub-bit networks around the user's own loop (paper, sections 3 and 4; supplement, A, C and E)."""

from subbit_infer.training.config import METHODS, Config
from subbit_infer.training.preparation import body_of, finish, prepare, prepared_layers, refine_, set_progress

__all__ = ["METHODS", "Config", "body_of", "finish", "prepare", "prepared_layers", "refine_", "set_progress"]
