"""samples -> best checkpoint of a sweep over learning rate, batch size, …"""

from posepipe import config
from posepipe.config import TuneConfig


def main() -> None:
    settings = config.parse(TuneConfig)
    from posepipe import cluster, tuning

    with config.user_errors():
        cluster.connect()
        print(tuning.describe(tuning.tune(settings)))


if __name__ == "__main__":
    main()
