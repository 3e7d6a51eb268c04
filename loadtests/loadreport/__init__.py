"""What users.py and run.py share: inputs, calls and their answers, loops, floors and the report.

It stands on the pieces of the benchmarks beside it, which find one another as scripts do.
"""

import sys
from pathlib import Path

LOADTESTS = Path(__file__).parent.parent
ROOT = LOADTESTS.parent

sys.path.insert(0, str(LOADTESTS / "bench"))
