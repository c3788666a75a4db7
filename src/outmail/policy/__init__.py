"""Decisions: pure functions of values. Time, random numbers and settings are passed in. Nothing here does
I/O.
"""
