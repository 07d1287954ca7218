"""Rewrites of a normalized model into fewer bits, and which of its nodes they are for."""
