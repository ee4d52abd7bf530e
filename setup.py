"""Refuse a Python that the course does not run on: pip asks here first, and would fetch 500 MB before it looks into pyproject.toml."""
import sys

from setuptools import setup

if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit("\nThis course runs on Python 3.11, 3.12 or 3.13, and this is {}.{}: delete .venv and make it with one of those, for instance "
             "`python3.13 -m venv .venv` (on Windows `py -3.13 -m venv .venv`).\n".format(*sys.version_info[:2]))
setup()
