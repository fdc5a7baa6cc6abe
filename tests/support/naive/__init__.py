"""Sections 3 and 4 of the algorithm, written a second time from their text alone.

Nothing here imports the package: two writings that shared code would share their mistakes.
"""
