"""LiteRT models: made of ONNX ones, quantized, and looked into.

Invariant: what tools write is believed only after it has given the given model's numbers, with its
names, order, shapes and number formats of inputs and outputs.
"""
