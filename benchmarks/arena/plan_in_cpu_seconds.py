"""plan.py whose budget is in CPU seconds of all processes: as on a machine with one core that nobody else uses.

cd <rendered repository> && python <here>/plan_in_cpu_seconds.py --budget 240s key=value ...
"""

import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path.cwd()))
os.cpu_count = lambda: 1

from foldwise.planning import budget  # noqa: E402
from foldwise.preflight import forecast  # noqa: E402

forecast.time = SimpleNamespace(perf_counter=time.process_time)
budget.THREADS = 1
sys.argv[0] = "plan.py"
runpy.run_path("plan.py", run_name="__main__")
