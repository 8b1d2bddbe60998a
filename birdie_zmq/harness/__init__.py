"""The lm_eval side: model class, model arguments, generation kwargs, chat templates, response cache and progress bar.

Importing it checks the version of lm_eval: the modules of this package import parts of lm_eval that other versions lack.
"""

from birdie_zmq.harness.lm_eval_version import check_version

check_version()
