"""Interfaces of predecessors, so that a program moves here by changing an import. Nothing of outmail depends
on them. What differs from each original is listed in docs/compat.md.
"""
