"""samples -> checkpoint"""

from posepipe import cli
from posepipe.config import TrainConfig


def main() -> None:
    settings = cli.parse(TrainConfig)
    with cli.user_errors():
        from posepipe import cluster, training

        cluster.connect()
        print(training.describe(training.train(settings)))


if __name__ == "__main__":
    main()
