"""Scheduling and stepping: steps 6, 7 and 11 of the walk."""
