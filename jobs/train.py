"""samples -> checkpoint"""

from posepipe import cli
from posepipe.config import TrainConfig


def main() -> None:
    settings = cli.parse(TrainConfig)
    from posepipe import cluster, training

    with cli.user_errors():
        cluster.connect()
        print(training.describe(training.train(settings)))


if __name__ == "__main__":
    main()
