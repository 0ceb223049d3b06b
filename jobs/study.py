"""what each step from the paper's recipe to the best one is worth: a table, all rows on the same data and budget"""

from posepipe import cli
from posepipe.config import StudyConfig


def main() -> None:
    settings = cli.parse(StudyConfig)
    with cli.user_errors():
        from posepipe import cluster, study

        cluster.connect()
        print(study.describe(study.run(settings)))


if __name__ == "__main__":
    main()
