"""Interfaces of other libraries, so that a program can change to outmail by changing an import. Nothing else
in outmail depends on them. docs/compat.md lists each difference.
"""
