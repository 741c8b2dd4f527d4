"""The verdict before the weights: does a model load and run here, or on a described target?"""

from persistlib.compat.judging import check_manifest
from persistlib.compat.targets import Target, here
from persistlib.compat.verdicts import Report

__all__ = ["Report", "Target", "check_manifest", "here"]
