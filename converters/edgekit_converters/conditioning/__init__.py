"""Rewrites of a float model's weights, float to float, that make a later rounding cost less."""
