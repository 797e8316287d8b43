"""`python -m planner` is `vram-planner`."""

from planner.cli import main

if __name__ == "__main__":
    main()
