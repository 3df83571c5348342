"""Robust Knowledge Distillation for speech: large speech models into small ones that still work in noise."""

__version__ = "0.1.0"
