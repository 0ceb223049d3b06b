"""samples -> best checkpoint of a sweep over learning rate, batch size, …"""

from posepipe import cli
from posepipe.config import TuneConfig


def main() -> None:
    settings = cli.parse(TuneConfig)
    with cli.user_errors():
        from posepipe import cluster, tuning

        cluster.connect()
        print(tuning.describe(tuning.tune(settings)))


if __name__ == "__main__":
    main()
