"""Runs as one offline page, still pictures and tables.

Needs the extra ``report``: plotly for the page, matplotlib for the pictures.
"""
