"""``python -m interlatent_live`` is the command ``interlatent-live``.

The engine starts services this way, so that a service runs with its supervisor's interpreter even
where no console script was installed.
"""

from interlatent_live.cli.main import main

if __name__ == "__main__":
    main()
