"""Lets the tests import the demo's scripts, which are modules of a folder and no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
