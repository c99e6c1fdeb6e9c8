"""Run xchat as the installed command does: from the compiled module, which loads faster."""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])

import xchat  # noqa: E402

xchat.main()
