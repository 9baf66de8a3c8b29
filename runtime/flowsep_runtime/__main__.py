"""`python -m flowsep_runtime`: the same as `flowsep-run`."""

from flowsep_runtime.app.cli import main

if __name__ == "__main__":
    main()
