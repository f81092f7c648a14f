"""What the process that workers are forked from imports first: it ends with its parent, even while it still imports.

Otherwise it would notice only after some seconds, and who reads the parent's output through a pipe would wait for it.
"""

from simulation.runtimes.processes import end_with_parent

end_with_parent()
