"""``python -m subbit_infer``: the ``subbit`` command."""

from subbit_infer.cli import main

main()
