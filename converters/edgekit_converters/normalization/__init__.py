"""One form of all models, which recipes start from: `steps` runs and proves the rewrites here."""

from edgekit_converters.normalization.steps import QUANTIZABLE_OPSET, Normalized, normalize

__all__ = ["QUANTIZABLE_OPSET", "Normalized", "normalize"]
