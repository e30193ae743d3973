"""Weights of any naming, grid or file -> tensors that fit."""
