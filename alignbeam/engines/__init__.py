"""Roles whose models run on inference engines: asked over HTTP for numbers, never for logits."""
