"""samples -> checkpoint"""

from posepipe import config
from posepipe.config import TrainConfig


def main() -> None:
    settings = config.parse(TrainConfig)
    from posepipe import cluster, training

    with config.user_errors():
        cluster.connect()
        print(training.describe(training.train(settings)))


if __name__ == "__main__":
    main()
