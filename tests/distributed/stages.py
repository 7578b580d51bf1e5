"""Run several `cisterna` commands, one after the other, in the ranks of one torchrun. Argument: a JSON file of them.

Starting ranks costs more than a tiny stage; this lets the tests of many stages share one start.
"""

import json
import sys
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cisterna import cli

for arguments in json.loads(Path(sys.argv[1]).read_text()):
    code = cli.main(arguments)
    if code:
        sys.exit(code)
    unset_hf_deepspeed_config()  # a process of its own would start without one
