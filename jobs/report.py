"""predictions and runs -> a self-contained HTML report"""

from posepipe import cli
from posepipe.config import ReportConfig


def main() -> None:
    settings = cli.parse(ReportConfig)
    with cli.user_errors():
        from posepipe import report

        print(report.describe(report.build(settings)))


if __name__ == "__main__":
    main()
